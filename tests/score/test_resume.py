"""Going on from earlier scores: what is kept, and what refuses to be mixed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from avops.errors import DataError
from avops.score import Candidate, Items, ScoreTable, TokenPlan, encode, instructed, taken_up

ABOUT = {
    "base": "b", "base_fingerprint": "f" * 64, "dtype": "f32", "vectors": {"med": "1" * 64},
}  # fmt: skip


@pytest.fixture
def told(items: Items, tokenizer: Any) -> TokenPlan:
    return encode(instructed(items, "please be short"), tokenizer)


@pytest.fixture
def kept(items: Items, plan: TokenPlan) -> ScoreTable:
    scores = -np.random.default_rng(0).random((5, 3)).astype(np.float32)
    return ScoreTable.start(items, [plan], about=ABOUT).append(Candidate(), scores)


def test_plans_and_vectors_are_added(
    kept: ScoreTable, items: Items, plan: TokenPlan, told: TokenPlan
) -> None:
    about = ABOUT | {"vectors": {"fin": "2" * 64}, "base": "moved"}
    instructions = [("exp", "please be short"), None]
    fresh = ScoreTable.start(items, [told, plan], instructions=instructions, about=about)
    table = taken_up(kept, fresh, "s.npz")
    assert table.entries == kept.entries
    assert table.scores.tobytes() == kept.scores.tobytes()
    assert [plan["instruction"] for plan in table.plans] == [None, "exp"]
    assert table.tokens.tolist() == [plan.scored.tolist(), told.scored.tolist()]
    assert table.about["vectors"] == {"med": "1" * 64, "fin": "2" * 64}
    again = taken_up(table, fresh, "s.npz")
    assert (again.plans, again.about) == (table.plans, table.about)
    assert again.tokens.shape == (2, 5, 3)


def changed_item(items: Items, **changes: Any) -> Items:
    entry = dataclasses.replace(items.entries[2], **changes)
    return dataclasses.replace(items, entries=(*items.entries[:2], entry, *items.entries[3:]))


ITEMS: dict[str, tuple[Callable[[Items], Items], str]] = {
    "levels": (
        lambda items: dataclasses.replace(items, levels=("gen", "exp", "avd")),
        "levels exp, gen, avd, expected gen, exp, avd",
    ),
    "fewer": (
        lambda items: dataclasses.replace(items, entries=items.entries[:4]),
        "5 items, expected 4",
    ),
    "domain": (
        lambda items: changed_item(items, domain="fin"),
        "other items: number 3 has domain 'leg', id None on line 3, expected 'fin', None on line 3",
    ),
    "id": (
        lambda items: changed_item(items, id="x"),
        "other items: number 3 has .* expected 'leg', 'x' on line 3",
    ),
    "line": (
        lambda items: changed_item(items, line=9),
        "other items: number 3 has .* expected 'leg', None on line 9",
    ),
    "query": (
        lambda items: changed_item(items, query="another?"),
        r"other tokens: plan \w{12}… of \d+ tokens, expected plan \w{12}… of \d+",
    ),
}


@pytest.mark.parametrize("case", ITEMS)
def test_other_items(kept: ScoreTable, tokenizer: Any, case: str) -> None:
    change, message = ITEMS[case]
    items = change(kept.items)
    fresh = ScoreTable.start(items, [encode(items, tokenizer)], about=ABOUT)
    with pytest.raises(DataError, match=rf"^s\.npz: its scores are of {message}.*; give --save "):
        taken_up(kept, fresh, "s.npz")


ABOUTS: dict[str, tuple[dict[str, Any], str]] = {
    "base": ({"base_fingerprint": "e" * 64}, r"another base: f{12}… \(b\), expected e{12}…"),
    "dtype": ({"dtype": "bf16"}, "another dtype: f32, expected bf16"),
    "vector": (
        {"vectors": {"fin": "2" * 64, "med": "3" * 64}},
        "another alignment vector 'med': 1{12}…, expected 3{12}…",
    ),
}


@pytest.mark.parametrize("case", ABOUTS)
def test_other_models(kept: ScoreTable, items: Items, plan: TokenPlan, case: str) -> None:
    change, message = ABOUTS[case]
    fresh = ScoreTable.start(items, [plan], about=ABOUT | change)
    with pytest.raises(DataError, match=rf"^s\.npz: its scores are of {message}; give --save "):
        taken_up(kept, fresh, "s.npz")


def test_a_table_of_unknown_models(kept: ScoreTable, items: Items, plan: TokenPlan) -> None:
    fresh = ScoreTable.start(items, [plan], about=ABOUT)
    with pytest.raises(DataError, match=r"another base: None, expected f{12}…"):
        taken_up(dataclasses.replace(kept, about={}), fresh, "s.npz")
    odd = dataclasses.replace(kept, about=ABOUT | {"vectors": [1]})
    with pytest.raises(DataError, match=r"vectors that are no table"):
        taken_up(odd, fresh, "s.npz")


def test_another_instruction(
    items: Items, plan: TokenPlan, told: TokenPlan, tokenizer: Any
) -> None:
    def table(text: str, of: TokenPlan) -> ScoreTable:
        return ScoreTable.start(items, [of], instructions=[("exp", text)], about=ABOUT)

    other = encode(instructed(items, "be long"), tokenizer)
    with pytest.raises(
        DataError, match=r"another instruction for 'exp': 'please be short', expected 'be long'"
    ):
        taken_up(table("please be short", told), table("be long", other), "s.npz")
