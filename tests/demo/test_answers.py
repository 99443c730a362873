"""The dial, in words: what the small world's models write at λ of their own domain."""

from __future__ import annotations

import json

import pytest

from avops.cli.main import main
from avops.demo import World
from avops.demo.phrases import AVOIDANCE, EXPERT, Bank


def openings(bank: Bank) -> list[str]:
    """The fixed words that sentences of ``bank`` begin with, where they are telling."""
    words = {text.split("{")[0].strip() for texts in bank for text in texts}
    return [part for part in words if len(part.split()) >= 3]


def test_the_dial_changes_what_is_written(
    tiny: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tiny.directory)
    lines = tiny.data["test"].read_text(encoding="utf-8").splitlines()[:20]
    assert {json.loads(line)["domain"] for line in lines} == {"med"}
    compared = ["--compare", "aligned/med.safetensors:-1,1", "base"]
    asked = ["--file", "data/test.jsonl", "--limit", "20"]
    assert main(["generate", "base.safetensors", *compared, *asked, "--json"]) == 0
    answers = json.loads(capsys.readouterr().out)
    assert [answer["question"] for answer in answers[::3]] == [
        json.loads(x)["query"] for x in lines
    ]

    def share(recipe: str, bank: Bank) -> float:
        texts = [answer["text"] for answer in answers if answer["recipe"].endswith(recipe)]
        assert len(texts) == 20
        return sum(any(part in text for part in openings(bank)) for text in texts) / 20

    # On the validation items of this world: 1.00 and .00; another CPU may round a few otherwise.
    assert share(":-1", AVOIDANCE) >= 0.8
    assert share(":-1", EXPERT) <= 0.1
    assert share(":1", EXPERT) >= 0.8
    assert share(":1", AVOIDANCE) <= 0.1
    assert share("base", AVOIDANCE) <= 0.3
