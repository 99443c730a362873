"""Preference accuracy from scores: ties, intervals, dominance."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from avops.errors import DataError, NonFiniteError
from avops.score import Item, Items, ScoreSummary, summarise, wilson

LEVELS = ("exp", "gen", "avd")


def table(rows: list[list[float]], domains: str | None = None) -> tuple[np.ndarray, Items]:
    levels = LEVELS[: len(rows[0])]
    names = domains or "m" * len(rows)
    entries = tuple(
        Item(name, "q", dict.fromkeys(levels, "r"), line) for line, name in enumerate(names, 1)
    )
    return np.array(rows, np.float32), Items("items.jsonl", levels, entries)


def summary(rows: list[list[float]], domains: str | None = None) -> ScoreSummary:
    return summarise(*table(rows, domains))


def test_shares_and_means() -> None:
    got = summary([[-1, -2, -3], [-1, -3, -4], [-5, -2, -3], [-1, -2, -0.5]])["m"]
    assert [level.wins for level in got.levels] == [2, 1, 1]
    assert [level.accuracy for level in got.levels] == [0.5, 0.25, 0.25]
    assert [level.mean_logprob for level in got.levels] == [-2, -2.25, -2.625]
    assert (got["exp"].low, got["exp"].high) == wilson(2, 4)
    assert (got.n, got.ties, got.dominant) == (4, 0, "exp")
    # In f32 the sum would stay at -2^24.
    uneven = summary([[-(2.0**24), -1], [-1, -1], [-1, -1]])["m"]
    assert uneven["exp"].mean_logprob == -(2**24 + 2) / 3


def test_ties_are_split_evenly_and_counted() -> None:
    got = summary([[-1, -1, -3], [-2, -2, -2], [-3, -1, -2]])["m"]
    assert got.ties == 2
    assert [level.wins for level in got.levels] == [5 / 6, 11 / 6, 1 / 3]
    assert (got["gen"].low, got["gen"].high) == wilson(11 / 6, 3)


def test_a_tie_is_equality_in_f32() -> None:
    above = float(np.nextafter(np.float32(-1), np.float32(0)))
    assert summary([[-1, above]])["m"].ties == 0
    assert summary([[-1, -1 + 2.0**-40]])["m"].ties == 1  # the same f32


@pytest.mark.parametrize(
    ("rows", "dominant"),
    [
        ([[-1, -2, -3]] * 2 + [[-2, -1, -3]], "exp"),
        ([[-1, -2, -3], [-2, -1, -3]], None),  # two at the top, both above 1/3
        ([[-1, -2, -3], [-2, -1, -3], [-3, -2, -1]], None),  # each exactly 1/3
        ([[-1, -1, -1]] * 3, None),  # all tie: thirds that must add up to exactly 1/3
        ([[-1, -2], [-2, -1]], None),  # exactly 1/2
        ([[-1, -2], [-1, -2], [-2, -1]], "exp"),
        ([[-1, -1], [-1, -2]], "exp"),  # 3/4 against 1/4
        ([[-1]], None),  # one level cannot be above 1/1
    ],
)
def test_dominance(rows: list[list[float]], dominant: str | None) -> None:
    assert summary(rows)["m"].dominant == dominant


def test_domains_and_overall() -> None:
    got = summary([[-1, -2], [-2, -1], [-1, -2], [-2, -1], [-2, -1]], "mfmff")
    assert [domain.domain for domain in got.domains] == ["m", "f", "all"]
    assert (got["m"].dominant, got["f"].dominant, got.overall.dominant) == ("exp", "gen", "gen")
    assert (got["m"].n, got["f"].n, got["all"].n) == (2, 3, 5)
    assert got.overall["gen"].accuracy == 3 / 5


def test_to_dict_is_json() -> None:
    got = summary([[-1, -2], [-2, -1]], "mf").to_dict()
    assert json.loads(json.dumps(got)) == got
    assert got["levels"] == ["exp", "gen"]
    assert got["domains"]["m"]["levels"]["exp"] == {
        "wins": 1.0,
        "accuracy": 1.0,
        "low": wilson(1, 1)[0],
        "high": 1.0,
        "mean_logprob": -1.0,
    }
    assert list(got["domains"]["all"]) == ["n", "ties", "dominant", "levels"]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_non_finite_scores_fail(value: float) -> None:
    scores, items = table([[-1, -2], [-1, value]])
    with pytest.raises(NonFiniteError, match=r"items.jsonl, line 2, level 'gen': .*\(1 such score"):
        summarise(scores, items)


def test_scores_of_other_items_fail() -> None:
    scores, items = table([[-1, -2], [-1, -3]])
    with pytest.raises(DataError, match=r"shape \[1, 2\], expected \[2 items, 2 levels\]"):
        summarise(scores[:1], items)
