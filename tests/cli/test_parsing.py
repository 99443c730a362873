"""How words are read: usage, help, and what an unknown word is answered with."""

from __future__ import annotations

import argparse
import re

import pytest

from avops.cli.main import main, parser


def verbs() -> dict[str, argparse.ArgumentParser]:
    """Every verb's parser, and those of `data`'s tasks."""
    found: dict[str, argparse.ArgumentParser] = {}
    waiting = [parser()]
    while waiting:
        one = waiting.pop()
        for action in one._actions:
            if action.nargs == argparse.PARSER:
                waiting += (action.choices or {}).values()  # type: ignore[union-attr]
                break
        else:
            found[one.prog.removeprefix("avops ")] = one
    return found


def refusal(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The one line on stderr with which ``argv`` is refused."""
    with pytest.raises(SystemExit) as caught:
        main(list(argv))
    assert caught.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err.rstrip("\n")


def test_without_words_the_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == parser().format_help()


@pytest.mark.parametrize(
    ("verb", "usage"),
    [
        ("merge", "avops merge [BASE] [--av NAME:λ …] [-o OUT] [options]"),
        ("extract", "avops extract BASE ALIGNED … -o OUT [options]"),
        ("sweep", "avops sweep [BASE] --av NAME:λ … [-o FIGURE] [options]"),
        ("generate", "avops generate [BASE] QUESTION [--av NAME:λ …] [options]"),
        ("diff", "avops diff A B [options]"),
        ("data synth", "avops data synth OUT --model NAME [options]"),
    ],
)
def test_usage_has_what_must_be_given_and_words_before_av(verb: str, usage: str) -> None:
    assert verbs()[verb].format_usage() == f"usage: {usage}\n"


def test_usage_of_avops_and_of_a_verb_with_tasks() -> None:
    assert parser().format_usage() == "usage: avops [options] VERB …\n"


def test_every_option_says_what_it_is() -> None:
    found = verbs()
    assert len(found) > 18
    for verb, one in found.items():
        for action in one._actions:
            assert action.help, f"{verb}: {action.option_strings or action.dest}"
            if action.option_strings and action.nargs != 0:
                assert action.metavar or action.choices or action.dest == "device", verb


def test_every_default_is_said() -> None:
    """Of options that choose: a value that counts without being given stands in the help."""
    for verb, one in verbs().items():
        for action in one._actions:
            quiet = action.nargs == 0 or action.default in (None, [], argparse.SUPPRESS)
            if not quiet and not isinstance(action, argparse.BooleanOptionalAction):
                text = f"{verb}: {action.option_strings or action.dest}: {action.help}"
                assert "default" in str(action.help), text


@pytest.mark.parametrize("columns", [60, 80, 140])
def test_help_is_as_wide_as_the_terminal(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for examples and tables of words, which are indented and stay as they are."""
    monkeypatch.setenv("COLUMNS", str(columns))
    for verb, one in verbs().items():
        description = (one.description or "").split("\n\n")
        for block in description:
            words = block.split()
            if words and not re.search(r"^\s", block, flags=re.MULTILINE):
                lines = [line for line in one.format_help().splitlines() if line[:1].strip()]
                shown = [line for line in lines if line.split()[0] == words[0]]
                assert shown, verb
                assert all(len(line) <= columns for line in shown), verb


def test_examples_keep_their_lines() -> None:
    text = verbs()["extract"].format_help()
    assert "\n  avops extract base aligned --rank 16 -o lora\n" in text
    assert "\nwords:\n  BASE      the model before it was aligned" in parser().format_help()


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["mrge", "x"], "avops: error: argument VERB: invalid 'mrge'; did you mean merge?; see"),
        (
            ["merge", "base", "--ouput", "x"],
            "avops merge: error: unknown --ouput x; did you mean --out?; see avops merge --help",
        ),
        (
            ["merge", "base", "med:.5"],
            "avops merge: error: unknown med:.5: alignment vectors follow --av, as in --av med:.5;",
        ),
        (
            ["merge", "base", "--rounding", "dithr"],
            "avops merge: error: argument --rounding: invalid 'dithr', expected one of nearest, di",
        ),
        (
            ["merge", "base", "--seed", "x"],
            "avops merge: error: argument --seed: x, expected 0 to 2^64 - 1; see avops mer",
        ),
        (
            ["demo", "--seed", "x"],
            "avops demo: error: argument --seed: invalid 'x', expected a wh",
        ),
        (
            ["search", "--hours", "x"],
            "avops search: error: argument --hours: invalid 'x', expected",
        ),
        (["generate", "a", "--nosuch"], "avops generate: error: unknown --nosuch; see avops gen"),
        (["data"], "avops data: error: the following arguments are required: TASK; see avops data"),
        (["data", "sinth"], "avops data: error: argument TASK: invalid 'sinth', expected one of "),
        (
            ["zzz"],
            "avops: error: argument VERB: invalid 'zzz', expected one of demo, data, align, ",
        ),
    ],
)
def test_an_unknown_word_is_answered_in_one_line(
    capsys: pytest.CaptureFixture[str], argv: list[str], said: str
) -> None:
    assert refusal(capsys, *argv).startswith(said)
