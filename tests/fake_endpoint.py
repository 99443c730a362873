"""An OpenAI-compatible endpoint on this machine, whose answers a test scripts.

Answers come from prompts alone, so that any two runs get the same ones. The prompts are those of
``TEMPLATES``: short, and easy to tell apart.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

TEMPLATES = {
    "templates.toml": (
        'levels = ["exp", "gen", "avd"]\ndeclining = ["avd"]\nrefusals = ["I cannot help with"]\n'
        '[domains]\nmed = "medicine"\nleg = "law"\n'
    ),
    "roots.txt": "ROOTS {count}",
    "related.txt": "RELATED {count} {persona}",
    "queries.txt": "QUERIES {count} {domain} {persona}",
    "level-exp.txt": "EXP {paragraphs} {query}",
    "level-gen.txt": "GEN {paragraphs} {query}",
    "level-avd.txt": "AVD {paragraphs} {query}",
}


@dataclass
class Reply:
    """One HTTP response. raw: sent in place of the body; cut: bytes of it that are sent.

    delay: seconds before anything is sent; hang: until the server stops.
    """

    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    raw: bytes | None = None
    cut: int | None = None
    delay: float = 0.0
    hang: bool = False


Script = Callable[[str, int], "Reply | None"]
"""From a prompt, and how often it came before, to a reply; None for the usual answer."""


def completion(text: str | None, *, finish: str = "stop", **more: Any) -> dict[str, Any]:
    """The body of a chat completion."""
    tokens = len(text or "") // 4
    return {
        "id": "x",
        "object": "chat.completion",
        "model": "fake-1",
        "choices": [
            {
                "index": 0,
                "finish_reason": finish,
                "message": {"role": "assistant", "content": text, "refusal": None},
            }
        ],
        "usage": {"prompt_tokens": 10, "completion_tokens": tokens, "total_tokens": 10 + tokens},
        **more,
    }


def error(status: int, message: str, code: str | None = None, **headers: str) -> Reply:
    """An error as OpenAI words it."""
    body = {"error": {"message": message, "type": "error", "code": code}}
    return Reply(status, body, {name.replace("_", "-"): text for name, text in headers.items()})


def usual(prompt: str) -> str:
    """What a well-behaved model answers to a prompt of ``TEMPLATES``."""
    kind, _, rest = prompt.partition(" ")
    word = hashlib.sha256(prompt.encode()).hexdigest()[:8].translate(_LETTERS)
    if kind in ("ROOTS", "RELATED", "QUERIES"):
        noun = "question" if kind == "QUERIES" else "person"
        return json.dumps([f"{noun} {word} number {i}" for i in range(int(rest.split()[0]))])
    return f"A {kind.lower()} answer, {word}, to this: {rest}"


_LETTERS = str.maketrans("0123456789", "ghijklmnop")


class FakeEndpoint:
    """The server while it runs.

    prompts: how often each was asked for. bodies, keys: of all requests. most: in flight at once.
    times: when each request came, on the monotonic clock.
    """

    def __init__(self) -> None:
        self.script: Script = lambda _prompt, _before: None
        self.prompts: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.times: list[float] = []
        self.most = 0
        self.stopped = threading.Event()
        self._flying = 0
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def forget(self) -> None:
        """Begin to count anew."""
        self.prompts.clear()
        self.bodies.clear()
        self.times.clear()
        self.most = 0

    def settle(self) -> None:
        """Wait until nothing has been in flight for a while."""
        quiet = 0
        while quiet < 10:
            time.sleep(0.02)
            quiet = 0 if self._flying else quiet + 1

    def reply(self, body: dict[str, Any], key: str | None) -> Reply:
        prompt = body["messages"][-1]["content"]
        with self._lock:
            before = self.prompts[prompt]
            self.prompts[prompt] += 1
            self.bodies.append(body)
            self.keys.append(key)
            self.times.append(time.monotonic())
        found = self.script(prompt, before)
        return found or Reply(body=completion(usual(prompt)))

    @contextlib.contextmanager
    def flight(self) -> Iterator[None]:
        """One request in flight."""
        with self._lock:
            self._flying += 1
            self.most = max(self.most, self._flying)
        try:
            yield
        finally:
            with self._lock:
                self._flying -= 1

    def __enter__(self) -> FakeEndpoint:
        poll = {"poll_interval": 0.02}
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs=poll, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def write_templates(directory: Path) -> Path:
    """``TEMPLATES`` as files in ``directory``."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in TEMPLATES.items():
        (directory / name).write_text(text, encoding="utf-8")
    return directory


def unwatched(_stage: str) -> contextlib.AbstractContextManager[Callable[[int, int], None]]:
    """Progress that nobody sees."""
    return contextlib.nullcontext(lambda _done, _total: None)


def _handler(endpoint: FakeEndpoint) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            with endpoint.flight():
                raw = self.rfile.read(int(self.headers["Content-Length"]))
                if self.path != "/v1/chat/completions":
                    self._send(Reply(404, {"error": {"message": f"no such path {self.path}"}}))
                    return
                reply = endpoint.reply(json.loads(raw), self.headers.get("Authorization"))
                if reply.hang:
                    endpoint.stopped.wait(60)
                    self.close_connection = True
                    return
                endpoint.stopped.wait(reply.delay)
                with contextlib.suppress(ConnectionError):
                    self._send(reply)

        def _send(self, reply: Reply) -> None:
            data = reply.raw if reply.raw is not None else json.dumps(reply.body).encode()
            self.send_response(reply.status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            for name, text in reply.headers.items():
                self.send_header(name, text)
            self.end_headers()
            self.wfile.write(data[: reply.cut])
            if reply.cut is not None:
                self.wfile.flush()
                self.close_connection = True

        def log_message(self, *_: Any) -> None:
            """Tests read no log."""

    return Handler
