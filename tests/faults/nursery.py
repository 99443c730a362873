"""A nursery: one process that has imported avops once, and forks a child for each scenario.

So a test can kill hundreds of real processes in seconds. Run as a script it is the server, which
has no threads of its own; ``Nursery`` is the client.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parent.parent


@dataclass(frozen=True)
class Ending:
    """How a child ended: by a signal, or with a result. said: its stdout and stderr."""

    signal: int
    result: dict[str, Any] = field(default_factory=dict)
    said: str = ""

    @property
    def error(self) -> tuple[str, str, int]:
        """(type, message, exit code) of the error that ended the merge; empty when it succeeded."""
        kind, message, code = self.result.get("error", ("", "", 0))
        return kind, message, code


class Nursery:
    """Client: starts scenarios in children and waits for them."""

    def __init__(self, directory: Path, **environment: str) -> None:
        self._directory = directory
        self._server = subprocess.Popen(
            [sys.executable, str(Path(__file__))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1", **environment},
        )

    def start(self, scenario: dict[str, Any]) -> tuple[int, str]:
        """Start ``scenario``. Returns the process id and a handle to wait with."""
        fd, handle = tempfile.mkstemp(dir=self._directory)
        os.close(fd)
        return int(self._ask({"handle": handle, "scenario": scenario})), handle

    def wait(self, started: tuple[int, str]) -> Ending:
        """Wait for a started child."""
        pid, handle = started
        status = int(self._ask({"wait": pid}))
        text = Path(handle).read_text()
        said = Path(handle + ".said").read_text()
        if os.WIFSIGNALED(status):
            return Ending(os.WTERMSIG(status), said=said)
        assert text, f"the child failed: {said}"
        return Ending(0, json.loads(text), said)

    def run(self, scenario: dict[str, Any]) -> Ending:
        """Start ``scenario`` and wait for its end."""
        return self.wait(self.start(scenario))

    def close(self) -> None:
        """End the server."""
        self._server.communicate()
        assert self._server.returncode == 0

    def _ask(self, request: dict[str, Any]) -> Any:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())


def _child(handle: str, scenario: dict[str, Any]) -> None:
    from faults.scenario import play

    said = os.open(handle + ".said", os.O_WRONLY | os.O_CREAT)
    for number in (1, 2):
        os.dup2(said, number)
    result = play(scenario)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    with open(handle, "w") as file:
        file.write(json.dumps(result))
        file.flush()


def _serve() -> None:
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            answer = os.waitpid(request["wait"], 0)[1]
        else:
            answer = os.fork()
            if answer == 0:
                code = 1
                try:
                    _child(request["handle"], request["scenario"])
                    code = 0
                except BaseException:
                    sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
                finally:
                    sys.stderr.flush()
                    os._exit(code)
        sys.stdout.write(f"{answer}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    sys.path.insert(0, str(TESTS))
    sys.path.remove(str(Path(__file__).parent))
    for module in ("avops.cli.main", "avops.cli.merge", "avops.cli.request", "faults.scenario"):
        importlib.import_module(module)

    _serve()
