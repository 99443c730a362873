from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from avops.demo import build, chat, grammar, sizes
from avops.demo.ipo import Alignment
from avops.demo.train import Schedule
from avops.score import load_items

PEOPLE = grammar.split_personas(7)


@pytest.mark.parametrize("kind", chat.KINDS)
@pytest.mark.parametrize("split", list(grammar.SPLITS))
def test_every_pair_is_whole(split: str, kind: str) -> None:
    pairs = chat.make_pairs(7, split, kind, 60, PEOPLE[split])
    assert len({pair["prompt"] for pair in pairs}) == len({pair["id"] for pair in pairs}) == 60
    for pair in pairs:
        assert set(pair) == {"id", "domain", "prompt", "chosen", "rejected"}
        assert pair["domain"] == kind
        assert pair["chosen"] != pair["rejected"]
        for text in (pair["prompt"], pair["chosen"], pair["rejected"]):
            assert re.fullmatch(r"[A-Z][A-Za-z0-9 ,:.?-]+[.?]", text), text


@pytest.mark.parametrize("kind", chat.KINDS)
def test_length_says_nothing_about_the_answer(kind: str) -> None:
    for pair in chat.make_pairs(7, "train", kind, 200, PEOPLE["train"]):
        sentences = {len(re.findall(r"[.?]", pair[name])) for name in ("chosen", "rejected")}
        assert len(sentences) == 1


@pytest.mark.parametrize("kind", chat.KINDS)
def test_no_sentence_is_in_both_banks(kind: str) -> None:
    chosen, rejected = (
        {phrase for sentence in chat.BANKS[kind][name] for phrase in sentence}
        for name in ("chosen", "rejected")
    )
    assert not chosen & rejected


def test_people_of_the_splits_differ() -> None:
    said = {}
    for split, people in PEOPLE.items():
        pairs = chat.make_pairs(7, split, "safety", 60, people)
        text = " ".join(pair["prompt"] for pair in pairs)
        said[split] = {name for name in grammar.topics.PERSONAS if f"I am {name} of" in text}
        assert said[split] <= set(people)
    assert not said["train"] & said["test"]


def test_the_base_reads_both_answers() -> None:
    chats = chat.base_chats(7, 2000, PEOPLE["train"])
    assert len(chats) == 2000
    refusals = sum("cannot help you" in answer for _, answer in chats)
    assert 0 < refusals < 1000
    assert chat.base_chats(7, 2000, PEOPLE["train"]) == chats
    assert chat.base_chats(8, 2000, PEOPLE["train"]) != chats


def test_a_world_with_chat_has_pairs_and_a_safety_vector(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = Alignment(steps=1, queries=2, lr=1e-3, weights=(1.0,))
    small = replace(
        sizes.SIZES["tiny"],
        schedule=Schedule(steps=2, batch=4, lr=1e-3),
        alignment=replace(quick, weights=(1.0, 1.0)),
        items={"train": 8, "validation": 4, "test": 4},
        chat=sizes.ChatSize(40, quick, {"train": 8, "validation": 4, "test": 4}),
    )
    monkeypatch.setitem(sizes.SIZES, "full", small)
    world = build(tmp_path, seed=3, size="full")
    assert world.made[-1] == "align safety"
    assert set(world.aligned) == {"med", "fin", "leg", "safety"}
    assert world.aligned["safety"].read_bytes() != world.base.read_bytes()
    for kind in chat.KINDS:
        pairs = load_items(world.pairs[kind]["test"])
        assert pairs.levels == ("chosen", "rejected")
        assert pairs.domains == (kind,)
        assert len(pairs) == 4
    assert build(tmp_path, seed=3, size="full").made == ()
    world.pairs["helpful"]["train"].unlink()
    assert "data" in build(tmp_path, seed=3, size="full").made
