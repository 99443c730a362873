"""The prompting baseline: where the instruction stands, and whose it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from avops.errors import DataError
from avops.score import Items, TokenPlan, encode, instructed, instructions_for
from avops.score.prompting import INSTRUCTIONS

LEVELS = ("exp", "gen", "avd")


def test_the_instruction_comes_before_the_query(
    items: Items, plan: TokenPlan, tokenizer: Any
) -> None:
    told = encode(instructed(items, "be short!"), tokenizer)
    for i, item in enumerate(items):
        for level in range(3):
            text = tokenizer.decode(told.sequence(i, level)[: told.starts[i, level]])
            assert text.startswith(f"<s>[INST] be short!\n\n{item.query} ")
    # Nothing else moves: the same responses are scored, token by token.
    assert told.scored.tolist() == plan.scored.tolist()
    for i in range(len(items)):
        for level in range(3):
            one, other = (p.sequence(i, level)[p.starts[i, level] :] for p in (told, plan))
            assert one.tolist() == other.tolist()
    assert instructed(items, "x")[0].query == f"x\n\n{items[0].query}"
    assert items[0].query == "what helps against a cold?"


def test_built_in_instructions() -> None:
    assert instructions_for(LEVELS) == INSTRUCTIONS
    assert list(instructions_for(["avd", "exp"])) == ["avd", "exp"]
    assert len(set(INSTRUCTIONS.values())) == 3
    with pytest.raises(
        DataError,
        match=r"the built-in instructions: no instruction for level 'chosen' among exp, gen, avd; "
        r"give one for each of chosen, rejected \(--instructions FILE\)",
    ):
        instructions_for(["chosen", "rejected"])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("own.json", '{"gen": "plain é", "exp": " deep "}'),
        ("own.toml", 'gen = "plain é"\nexp = """\ndeep\n"""'),
    ],
)
def test_instructions_of_a_file(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    got = instructions_for(("exp", "gen"), path)
    assert list(got.items()) == [("exp", "deep"), ("gen", "plain é")]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", '{"exp": "x"}', "no instruction for level 'gen' among exp; give one for each"),
        ("a.json", "{}", "no instruction for level 'exp' among none"),
        ("a.json", '{"exp": "x", "gen": "y", "egn": "z"}', "an instruction for 'egn', expected on"),
        ("a.json", '{"exp": "x", "gen": 3}', "the instruction for 'gen' is int, expected a text"),
        ("a.json", '{"exp": "x", "gen": " "}', "the instruction for 'gen' is ' ', expected a text"),
        ("a.json", '{"exp": "x", "exp": "y"}', "the key more than once"),
        ("a.json", "[1]", "got a list, expected a JSON object"),
        ("a.json", "{", "text that is not JSON"),
        ("a.toml", "exp = ", "not valid TOML"),
        ("a.toml", '[exp]\na = "x"\n[gen]\n', "the instruction for 'exp' is dict, expected a text"),
        ("a.yaml", "exp: x", "instructions cannot be read from '.yaml', expected .json or .toml"),
        ("a", "exp: x", "instructions cannot be read from 'a file without suffix'"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, text: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        instructions_for(("exp", "gen"), path)
    assert str(caught.value).startswith(str(path))
    assert message in str(caught.value)


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none.json: the instructions cannot be read: .*No such"):
        instructions_for(LEVELS, tmp_path / "none.json")
    path = tmp_path / "latin.toml"
    path.write_bytes(b'exp = "\xe9"')
    with pytest.raises(DataError, match=r"latin.toml: the instructions cannot be read"):
        instructions_for(LEVELS, path)


def test_special_tokens_in_instructions_are_refused(items: Items, tokenizer: Any) -> None:
    with pytest.raises(DataError, match=r"got the special token '</s>' in the text"):
        encode(instructed(items, "a</s>"), tokenizer)


def test_json_escapes(tmp_path: Path) -> None:
    path = tmp_path / "own.json"
    path.write_text(json.dumps({"exp": "\ud800"}))
    with pytest.raises(DataError, match="the instruction for 'exp' is"):
        instructions_for(["exp"], path)
