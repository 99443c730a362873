"""What `avops generate` is asked: bases, recipes and questions told apart, and mistakes."""

from __future__ import annotations

import io
import shlex
import sys
from pathlib import Path

import pytest

from avops.cli.generate_request import Request, request_of
from avops.cli.main import main, parser
from avops.cli.project import load_project
from avops.errors import UserError
from small_project import SmallProject

ASK = "med question 1?"


def asked(words: str) -> Request:
    args = parser().parse_args(["generate", *shlex.split(words)])
    return request_of(args, load_project())


@pytest.mark.parametrize(
    ("words", "base", "recipes"),
    [
        ("'What helps?'", "base.safetensors", ["base"]),
        ("hello", "base.safetensors", ["base"]),
        ("hf 'What helps?'", "hf", ["base"]),
        ("--av med:-1 fin:.5 'What helps?'", "base.safetensors", ["med:-1 fin:.5"]),
        ("--av med:-1 --av fin:.5 hello", "base.safetensors", ["med:-1 fin:.5"]),
        ("'What helps?' --av med:-1 fin:.5", "base.safetensors", ["med:-1 fin:.5"]),
        ("hf --av med:-1 --max-tokens 5 'Is it 3:4?'", "hf", ["med:-1"]),
        ("hf --max-tokens 5 'What helps?' --av med:-1", "hf", ["med:-1"]),
        ("--max-tokens 5 hf hello --json", "hf", ["base"]),
        ("--compare 'med:-1 fin:.5' base 'What: 1 or 2?'", "base.safetensors",
         ["med:-1 fin:.5", "base"]),
        ("hf --compare med:-1,.5 '' hello", "hf", ["med:-1", "med:.5", "base"]),
        ("--compare med:0:1:.5 hello", "base.safetensors", ["med:0", "med:0.5", "med:1"]),
        ("--compare aligned/med.safetensors:1 fin:1 -- hello", "base.safetensors",
         ["aligned/med.safetensors:1", "fin:1"]),
    ],
)  # fmt: skip
def test_words_are_told_apart(
    project: SmallProject, words: str, base: str, recipes: list[str]
) -> None:
    request = asked(words)
    assert request.base == base
    assert [str(recipe) for recipe in request.recipes] == recipes
    assert request.questions is not None
    assert [question.text for question in request.questions] == [
        next(w for w in reversed(shlex.split(words)) if w == "hello" or "?" in w)
    ]


def test_sums_are_in_every_recipes_own_order(project: SmallProject) -> None:
    """As `avops merge` adds them; two terms may swap, which changes nothing."""
    request = asked("--compare 'med:1 fin:1' 'leg:1 fin:.5 med:2' 'fin:.5 leg:1' hello")
    assert [source.name for source in request.sources] == ["leg", "fin", "med"]
    request = asked("--compare 'leg:1 fin:.5 med:2' 'fin:.5 med:1 leg:0' hello")
    assert [source.name for source in request.sources] == ["leg", "fin", "med"]
    with pytest.raises(UserError, match=r"'fin:1 leg:1 med:1': its terms come in another order th"):
        asked("--compare 'leg:1 fin:.5 med:2' 'fin:1 leg:1 med:1' hello")


@pytest.mark.parametrize("argv", [[], ["-"], ["--av", "med:1", "-"], ["hf"]])
def test_a_question_from_a_pipe(
    project: SmallProject, monkeypatch: pytest.MonkeyPatch, argv: list[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("What helps,\nand why?\n"))
    args = parser().parse_args(["generate", *argv])
    request = request_of(args, load_project())
    assert request.questions is not None
    assert [question.text for question in request.questions] == ["What helps,\nand why?"]
    assert request.base == ("hf" if argv == ["hf"] else "base.safetensors")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--av", "mde:1", ASK], "did you mean med"),
        (["--av", "med", ASK], "--av med: no λ, expected NAME:λ"),
        (["--av", "fin:1", "med"], "--av med: no λ, expected NAME:λ"),
        (["--compare", "med:1", "med:x", ASK], "--compare med:x: λ is 'x', expected a finite"),
        (["--compare", "med:1", "mde:1", ASK], "--compare mde: no alignment vector has this name"),
        (["--av", "med:1", "--compare", "fin:1", ASK], "--av with --compare: expected one of"),
        (["--compare", "med:1", "avs/med.safetensors:1", ASK], "expected each alignment vector"),
        (["gone.safetensors", ASK], "gone.safetensors: cannot open"),
        (["hf", "one?", "two?"], "expected at most one BASE and one question"),
        (["--av", "med:1", "a b?", "--compare", "med:1", "c d?"], "two questions, expected one"),
        (["--file", "items.jsonl", ASK], "'med question 1?' with --file items.jsonl: expected on"),
        (["--file", "gone.txt"], "gone.txt: the questions cannot be read"),
        (["--file", "gone.jsonl"], "gone.jsonl: the item file cannot be read"),
        (["--file", "items.jsonl", "--limit", "0"], "--limit is 0, expected 1 or more questions"),
        (["--limit", "1", ASK], "--limit without --file"),
        ([" "], "the question: got ' ', expected a text with visible characters"),
        (["a </s> b"], "got the special token '</s>' in the text"),
        ([ASK, "--max-tokens", "0"], "max tokens is 0, expected 1 or more"),
        ([ASK, "--temperature", "-1"], "temperature is -1.0, expected 0 (greedy)"),
        ([ASK, "--seed", "1"], "--seed without --temperature: greedy answers draw nothing"),
        ([ASK, "--top-p", ".5"], "--top-p without --temperature: greedy answers draw nothing"),
        ([ASK, "--raw", "--template", "{query}{response}"], "--raw with --template: expected one"),
        ([ASK, "--template", "no place"], "{query} stands in it 0 times"),
        ([ASK, "--tokenizer", "avs"], "avs: the tokenizer cannot be loaded"),
        ([ASK, "--device", "cuda:99"], "--device cuda:99: cannot be used"),
        (["word " * 60], "the model takes 256 positions; nothing is truncated"),
    ],
)  # fmt: skip
def test_mistakes(
    project: SmallProject, capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    assert main(["generate", *argv]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.splitlines()[-1].startswith("avops generate: error: ")
    assert "Traceback" not in captured.err
    assert captured.out == ""


def test_a_tokenizer_without_a_chat_template(
    project: SmallProject, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("chat_template.jinja").unlink()
    assert main(["generate", ASK]) == 2
    assert "it has no chat template, and no template was given" in capsys.readouterr().err
    assert main(["generate", "--raw", ASK, "--max-tokens", "3"]) == 0
