"""`avops generate` on a terminal, without a question: it asks, and dials turn."""

from __future__ import annotations

import io
import json
import os
import pty
import select
import signal
import subprocess
import sys

import pytest

from avops.cli import output
from avops.cli.main import main
from small_project import SmallProject

ASK = "med question 1?"


class Conversation:
    """`avops generate` on a terminal of its own, line by line."""

    def __init__(self, *argv: str) -> None:
        self.end, side = pty.openpty()
        self.running = subprocess.Popen(
            [sys.executable, "-m", "avops", "generate", *argv, "--max-tokens", "5"],
            stdin=side,
            stdout=side,
            stderr=side,
            env={**os.environ, "TERM": "dumb", "COLUMNS": "200"},
            start_new_session=True,
        )
        os.close(side)

    def __enter__(self) -> Conversation:
        return self

    def __exit__(self, *error: object) -> None:
        self.running.kill()  # where a test has failed
        self.running.wait(60)
        os.close(self.end)

    def until(self, wanted: str) -> str:
        """What is shown up to ``wanted``."""
        shown = b""
        while wanted.encode() not in shown:
            ready, _, _ = select.select([self.end], [], [], 60)
            assert ready, shown
            try:
                shown += os.read(self.end, 1)
            except OSError as error:  # the other end has closed
                raise AssertionError(shown.decode(errors="replace")) from error
        return shown.decode(errors="replace").replace("\r", "")

    def says(self, line: str, until: str) -> str:
        os.write(self.end, line.encode() + b"\n")
        return self.until(until)


def test_a_conversation(talkative: SmallProject, capsys: pytest.CaptureFixture[str]) -> None:
    def text(*av: str) -> str:
        options = ["--av", *av] if av else []
        assert main(["generate", *options, ASK, "--max-tokens", "5", "--json"]) == 0
        return output.tame(json.loads(capsys.readouterr().out)["text"])

    with Conversation() as talk:
        assert "dials: med, fin, leg; :help for help\nbase> " in talk.until("base> ")
        talk.says(":med .5", "med:.5> ")  # nothing was asked yet
        shown = talk.says(ASK, "med:.5> ")
        assert f"{text('med:.5')}\n5 tokens in " in shown
        assert text("med:.5", "fin:-1") in talk.says(":fin:-1", "med:.5 fin:-1> ")
        assert text("leg:2", "fin:-1") in talk.says(":leg:2 med:0", "fin:-1 leg:2> ")
        assert "error: mde: no alignment vector has this name" in talk.says(
            ":mde 1", "fin:-1 leg:2> "
        )
        assert "error: med: no λ" in talk.says(":med", "fin:-1 leg:2> ")
        assert "error: no dial given" in talk.says(":", "fin:-1 leg:2> ")
        assert "error: the question, field 'query': got" in talk.says("</s>", "fin:-1 leg:2> ")
        assert ":quit" in talk.says(":help", "fin:-1 leg:2> ")
        assert text() in talk.says(f":base\n{ASK}", "tokens/s)")
        os.write(talk.end, b"\n:quit\n")
        assert talk.running.wait(60) == 0


def test_conversations_end(project: SmallProject) -> None:
    with Conversation("--av", "fin:1") as talk:
        assert "dials: fin; :help" in talk.until("fin:1> ")
        os.write(talk.end, b"\x04")
        assert talk.running.wait(60) == 0
    with Conversation("--compare", "fin:1", "base") as talk:
        talk.until("fin:1 | base> ")
        assert "start again without --compare" in talk.says(":fin 1", "fin:1 | base> ")
        talk.running.send_signal(signal.SIGINT)
        assert talk.running.wait(60) == 130


def test_no_conversation_without_a_terminal(
    project: SmallProject, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nobody would see the prompt."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdin", Terminal())
    assert main(["generate"]) == 2
    assert "no question given; expected one as the last word" in capsys.readouterr().err
