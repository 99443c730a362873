"""Shares of verdicts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from avops.align import Verdict, shares
from avops.score import Items, load_items, wilson

LEVELS = ("exp", "gen", "avd")


@pytest.fixture
def items(write_items: Callable[..., Path]) -> Items:
    records = [
        {"domain": domain, "query": f"{domain} {n}?", "responses": {x: f"{x} {n}" for x in LEVELS}}
        for domain in ("med", "leg")
        for n in range(3)
    ]
    return load_items(write_items("items.jsonl", records))


def test_shares_with_intervals(items: Items) -> None:
    found = [Verdict(level) for level in ("exp", "exp", None, "avd", "gen", "avd")]
    med, leg, both = shares(items, dict(enumerate(found)))
    assert (med.domain, leg.domain, both.domain) == ("med", "leg", "all")
    assert (med.n, med.unplaced, both.n, both.unplaced) == (3, 1, 6, 1)
    assert [share.count for share in both.levels] == [2, 1, 2]
    exp = med["exp"]
    assert (exp.share, exp.low, exp.high) == (2 / 3, *wilson(2, 3))
    assert med.agreement is None
    assert leg.to_dict()["levels"]["avd"]["count"] == 2


def test_agreement_with_what_wins_by_log_prob(items: Items) -> None:
    found = [Verdict(level) for level in ("exp", "exp", None, "avd", "gen", "avd")]
    winners = ["exp", "gen", None, "avd", None, "avd"]
    med, leg, both = shares(items, dict(enumerate(found)), winners)
    # An answer of no level agrees with nothing, not even with a tie.
    assert med.agreement == (1 / 3, *wilson(1, 3))
    assert leg.agreement == (2 / 3, *wilson(2, 3))
    assert both.agreement == (3 / 6, *wilson(3, 6))


def test_what_was_not_reached_is_left_out(items: Items) -> None:
    found = shares(items, {0: Verdict("exp"), 2: Verdict("gen")})
    assert [(part.domain, part.n) for part in found] == [("med", 2), ("all", 2)]
    assert shares(items, {}) == ()
