"""On a pseudo-terminal: drawn tables, a bar, nothing lost, nothing interpreted; and signals."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from avops.cli.main import main
from small_project import SmallProject

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


def on_terminal(*argv: str, columns: int = 80) -> tuple[int, str]:
    """(exit code, what the terminal got) of ``avops argv``."""
    main_end, side = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(columns), "TERM": "xterm"}
    process = subprocess.Popen(
        [sys.executable, "-m", "avops", *argv],
        stdin=side,
        stdout=side,
        stderr=side,
        env=environment,
    )
    os.close(side)
    received = b""
    while True:
        ready, _, _ = select.select([main_end], [], [], 60)
        try:
            data = os.read(main_end, 65536) if ready else b""
        except OSError:  # the other end has closed
            data = b""
        if not data:
            break
        received += data
    os.close(main_end)
    return process.wait(60), ESCAPES.sub("", received.decode())


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_a_table_loses_no_digit(project: SmallProject, columns: int) -> None:
    code, shown = on_terminal("score", columns=columns)
    assert code == 0
    assert "…" not in shown[shown.index("base.safetensors on") :]
    assert len(re.findall(r"\.\d\d \[\d?\.\d\d, \d?\.\d\d\]", shown)) == 12
    for word in ("domain", "items", "exp", "gen", "avd", "ties", "dominant", "scoring"):
        assert word in shown
    if columns >= 80:
        assert max(len(line.rstrip()) for line in shown.split("\n") if "[." in line) <= columns


def test_markup_in_names_is_text(project: SmallProject) -> None:
    Path("a[/c]").mkdir(parents=True)
    Path("a[/c]/m.safetensors").write_bytes(Path("aligned/fin.safetensors").read_bytes())
    code, shown = on_terminal("sweep", "--av", "a[/c]/m.safetensors:0:1:1", "-o", "x.png")
    assert code == 0, shown
    code, shown = on_terminal("score", "--levels", "exp,gen", "--data", "items.jsonl")
    assert code == 0, shown
    code, shown = on_terminal("inspect", "a[/c]/m.safetensors")
    assert "a[/c]/m.safetensors" in shown


def test_control_characters_in_names_are_escaped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from avops.disk import write_checkpoint
    from avops.dtypes import F32

    path = tmp_path / "x.safetensors"
    write_checkpoint(path, {"a\n\x1b[31mb": (F32, np.zeros(2, "<f4"))})
    assert main(["inspect", str(path)]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert r"a\n\x1b[31mb" in out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_leave_nothing_behind(project: SmallProject, number: signal.Signals) -> None:
    """A merge of 400 MB of sparse zeros is stopped in its middle."""
    from avops.disk import encode_header
    from avops.dtypes import BF16

    prefix, _ = encode_header([("w", BF16, (200_000_000,))], {"format": "pt"})
    for name in ("big.safetensors", "big2.safetensors"):
        with open(name, "wb") as file:
            file.write(prefix)
            file.truncate(len(prefix) + 400_000_000)
    before = sorted(os.listdir())
    # A background job ignores SIGINT, and so would its children.
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [sys.executable, "-m", "avops", "merge", "big.safetensors", "--av", "big2.safetensors:1"],
        env={**os.environ, "AVOPS_BACKEND": "reference", "AVOPS_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    signal.signal(signal.SIGINT, inherited)
    deadline = time.monotonic() + 60
    while not [name for name in os.listdir() if "partial" in name]:
        assert time.monotonic() < deadline, "the merge never started"
        time.sleep(0.01)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.endswith("avops merge: interrupted; nothing was left half written\n")
    assert sorted(os.listdir()) == before


def test_a_full_stdout_is_no_internal_error(project: SmallProject) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "avops", "merge", "--av", "med:1"],
            check=False,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 1
    assert "internal error" not in done.stderr
    assert "finished outputs are in place" in done.stderr
    assert Path("merged.safetensors").exists()
