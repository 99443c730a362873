"""The full table: what it holds, what is cut out of it, and its CSV."""

from __future__ import annotations

import csv
import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest

from avops.errors import DataError, NonFiniteError, OutputError
from avops.score import Candidate, Items, ScoreTable, TokenPlan, check_table_path, summarise

MIX = Candidate((("med", "-1"), ("fin", "0.5")))
BASE = Candidate()


@pytest.fixture
def scores() -> np.ndarray:
    values = -np.random.default_rng(0).random((2, 5, 3)).astype(np.float32)
    values[0, 1] = -1 / 3
    values[1, 2, 1:] = -0.01
    return values


@pytest.fixture
def table(scores: np.ndarray, items: Items, plan: TokenPlan) -> ScoreTable:
    return ScoreTable.start(items, [plan]).append(MIX, scores[0]).append(BASE, scores[1])


def test_names() -> None:
    assert MIX.name == "med:-1 fin:0.5"
    assert BASE.name == "base"
    assert Candidate(instruction="exp").name == "base, told exp"


def test_candidates_are_appended(table: ScoreTable, scores: np.ndarray, items: Items) -> None:
    assert table.scores.tobytes() == scores.tobytes()
    assert table.scores.dtype == np.float32
    assert table.candidates == ("med:-1 fin:0.5", "base")
    assert table.levels == items.levels
    with pytest.raises(DataError, match=r"shape \[5, 2\], expected \[5 items, 3 levels\]"):
        table.append(BASE, scores[0, :, :2])
    scores[1, 3, 2] = np.nan
    with pytest.raises(NonFiniteError, match=r"line 4, level 'avd': the mean log-prob is nan"):
        table.append(BASE, scores[1])


def test_each_candidate_has_its_own_plan(
    table: ScoreTable, scores: np.ndarray, plan: TokenPlan
) -> None:
    longer = dataclasses.replace(
        table, tokens=np.stack([plan.scored, 2 * plan.scored]), plans=(table.plans[0],) * 2
    ).append(Candidate(instruction="exp", plan=1), scores[0])
    assert np.array_equal(longer.under("sum", 2), 2 * longer.under("sum", 0))
    assert np.array_equal(longer.under("sum", 0), scores[0].astype(np.float64) * plan.scored)


def test_some_candidates(table: ScoreTable, scores: np.ndarray) -> None:
    assert table.pick([1]).candidates == ("base",)
    turned = table.pick([1, 0, 1])
    assert turned.candidates == ("base", "med:-1 fin:0.5", "base")
    assert turned.scores.tobytes() == scores[[1, 0, 1]].tobytes()


def test_some_items_and_levels(table: ScoreTable, scores: np.ndarray, plan: TokenPlan) -> None:
    """Summaries of a part are those of the part: nothing is taken from another row or level."""
    part = table.select(levels=["avd", "exp"], domains=["fin", "med"], limit=1)
    rows, columns = [0, 4], [2, 0]  # med's first and fin's, in the file's order
    assert [item.line for item in part.items] == [1, 5]
    assert part.levels == ("avd", "exp")
    assert part.scores.tolist() == scores[:, rows][:, :, columns].tolist()
    assert part.tokens.tolist() == [plan.scored[rows][:, columns].tolist()]
    assert part.nbytes.tolist() == table.nbytes[rows][:, columns].tolist()
    assert part.characters.tolist() == table.characters[rows][:, columns].tolist()
    summary = summarise(part.under("byte", 1), part.items)
    assert summary["med"]["avd"].mean_logprob == table.under("byte", 1)[0, 2]
    assert table.select().scores.tobytes() == scores.tobytes()


def test_parts_that_are_not_there(table: ScoreTable) -> None:
    with pytest.raises(DataError, match=r"no scores of level 'safe', expected some of exp, gen"):
        table.select(levels=["exp", "safe"])
    with pytest.raises(DataError, match=r"no items of domain 'law', expected one of med, leg, fin"):
        table.select(domains=["law"])
    with pytest.raises(DataError, match=r"limit is 0"):
        table.select(limit=0)


def test_csv(table: ScoreTable, scores: np.ndarray, items: Items, plan: TokenPlan) -> None:
    rows = list(csv.DictReader(io.StringIO(table.to_csv())))
    assert len(rows) == scores.size
    assert list(rows[0]) == [
        "candidate", "domain", "item", "line", "id", "level", "mean_logprob", "tokens", "bytes",
        "characters", "winner",
    ]  # fmt: skip
    got = np.array([np.float32(row["mean_logprob"]) for row in rows]).reshape(scores.shape)
    assert np.array_equal(got, scores)  # the text reads back as the same f32
    for number, row in enumerate(rows):
        candidate, item, level = np.unravel_index(number, scores.shape)
        text = items[item].responses[items.levels[level]]
        assert row["candidate"] == table.candidates[candidate]
        assert (row["domain"], row["item"]) == (items[item].domain, str(item))
        assert (row["line"], row["level"]) == (str(item + 1), items.levels[level])
        assert int(row["tokens"]) == plan.scored[item, level]
        assert (int(row["bytes"]), int(row["characters"])) == (len(text.encode()), len(text))
    wins = np.array([float(row["winner"]) for row in rows]).reshape(scores.shape)
    assert wins[0, 1].tolist() == [0.333333] * 3
    assert wins[1, 2].tolist() == [0, 0.5, 0.5]
    assert wins[0, 0].tolist() == np.eye(3)[scores[0, 0].argmax()].tolist()


@pytest.mark.parametrize("name", ["table", "table.json", "table.CSV", ".npz"])
def test_other_suffix(name: str) -> None:
    with pytest.raises(OutputError, match=r"a table cannot be written as .*; name it .npz or .csv"):
        check_table_path(Path(name))
    check_table_path(Path("a.npz"))
    check_table_path(Path("a.csv"))
