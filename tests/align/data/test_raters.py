"""Agreement: known tables, scikit-learn as the oracle, intervals that cover."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import numpy as np
import pytest

from avops.align.data import Agreement, agreement
from avops.align.data.annotations import Annotation, Annotations
from avops.align.data.kappa import cohen, fleiss_kappas, item_intervals, kappas, table_interval
from avops.score.intervals import wilson

pytest.importorskip("sklearn", reason="scikit-learn is not installed")
LEVELS = ("exp", "gen", "avd")


def annotations(rows: list[tuple[str, str, str, str]], domain: str | None = None) -> Annotations:
    """Rows of (item, annotator, label, level)."""
    return Annotations("here", tuple(Annotation(*row, domain) for row in rows))


def crowd(
    items: int = 60, right: float = 0.8, names: str = "ABC"
) -> list[tuple[str, str, str, str]]:
    draw = random.Random(1)
    rows = []
    for number in range(items):
        level = LEVELS[number % 3]
        for name in names:
            label = level if draw.random() < right else draw.choice(LEVELS)
            rows.append((f"i{number}", name, label, level))
    return rows


def measure(rows: list[tuple[str, str, str, str]]) -> Agreement:
    return agreement(annotations(rows))


def test_a_table_worked_by_hand() -> None:
    """20 yes/yes, 5 yes/no, 10 no/yes, 15 no/no: po = .7, pe = .5, κ = .4."""
    table = np.array([[[20, 5], [10, 15]]])
    assert kappas(table)[0] == pytest.approx(0.4, abs=1e-15)  # three f64 roundings of numbers < 1
    a = ["y"] * 25 + ["n"] * 25
    b = ["y"] * 20 + ["n"] * 5 + ["y"] * 10 + ["n"] * 15
    assert cohen(a, b, ["y", "n"]) == pytest.approx(0.4, abs=1e-15)  # as above


def test_our_kappas_are_scikit_learns() -> None:
    draw = random.Random(2)
    for size in (1, 2, 7, 50):
        a, b = ([draw.choice(LEVELS) for _ in range(size)] for _ in range(2))
        table = np.zeros((1, 3, 3), np.int64)
        for x, y in zip(a, b, strict=True):
            table[0, LEVELS.index(x), LEVELS.index(y)] += 1
        ours, theirs = float(kappas(table)[0]), cohen(a, b, LEVELS)
        if theirs is None:
            assert np.isnan(ours)
        else:
            # Two f64 evaluations of (po - pe) / (1 - pe): a few roundings, and 1 - pe above .1.
            assert ours == pytest.approx(theirs, abs=1e-14)


def test_fleiss_own_example() -> None:
    """Fleiss' table of 10 subjects, 14 raters, 5 categories: κ = .210 (to three decimals)."""
    table = [
        [0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
        [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7],
    ]  # fmt: skip
    assert round(float(fleiss_kappas(np.array([table]))[0]), 3) == 0.210


def test_annotators_against_the_level() -> None:
    rows = crowd()
    found = measure(rows)
    assert [rater.annotator for rater in found.raters] == ["A", "B", "C", "pooled"]
    for rater in found.raters[:3]:
        own = [row for row in rows if row[1] == rater.annotator]
        right = sum(label == level for _, _, label, level in own)
        assert (rater.n, rater.right) == (60, right)
        assert rater.accuracy_interval == wilson(right, 60)
        labels, levels = [row[2] for row in own], [row[3] for row in own]
        assert rater.kappa == cohen(levels, labels, found.labels)
        for i, level in enumerate(found.levels):
            for j, label in enumerate(found.labels):
                counted = sum(row[2:] == (label, level) for row in own)
                assert rater.confusion[i][j] == counted
    pooled = found.raters[-1]
    assert pooled.n == 180
    assert pooled.right == sum(rater.right for rater in found.raters[:3])
    assert np.array_equal(pooled.confusion, np.sum([r.confusion for r in found.raters[:3]], 0))


def test_every_two_annotators() -> None:
    rows = crowd()
    rows.remove(next(row for row in rows if row[:2] == ("i7", "B")))
    found = measure(rows)
    assert [(p.a, p.b, p.n) for p in found.pairs] == [
        ("A", "B", 59),
        ("A", "C", 60),
        ("B", "C", 59),
    ]
    by = {name: {r[0]: r[2] for r in rows if r[1] == name} for name in "ABC"}
    for pair in found.pairs:
        both = [i for i in by[pair.a] if i in by[pair.b]]
        a, b = [by[pair.a][i] for i in both], [by[pair.b][i] for i in both]
        assert pair.kappa == cohen(a, b, found.labels)
        assert pair.agreement == sum(x == y for x, y in zip(a, b, strict=True)) / len(both)
        assert pair.kappa_interval is not None
        assert pair.kappa_interval[0] < pair.kappa < pair.kappa_interval[1]
    assert found.fleiss is not None
    assert (found.fleiss.n, found.fleiss.annotators) == (59, 3)
    assert found.fleiss.kappa_interval is not None
    assert found.fleiss.kappa_interval[0] < found.fleiss.kappa < found.fleiss.kappa_interval[1]


def test_two_annotators_have_no_fleiss_and_strangers_no_pair() -> None:
    assert measure(crowd(names="AB")).fleiss is None
    rows = [("i1", "A", "exp", "exp"), ("i2", "B", "gen", "gen"), ("i3", "C", "exp", "exp")]
    found = measure(rows)
    assert found.pairs == ()
    assert found.fleiss is not None
    assert (found.fleiss.n, found.fleiss.kappa) == (0, None)


def test_one_label_throughout_has_no_kappa() -> None:
    rows = [(f"i{n}", name, "exp", "exp") for n in range(5) for name in "ABC"]
    found = measure(rows)
    assert all(r.kappa is None and r.kappa_interval is None for r in found.raters)
    assert all(p.kappa is None and p.agreement == 1 for p in found.pairs)
    assert found.fleiss is not None
    assert found.fleiss.kappa is None
    assert found.raters[0].accuracy == 1


def test_perfect_and_opposite() -> None:
    perfect = measure(crowd(right=1.0))
    assert all(rater.kappa == 1 for rater in perfect.raters)
    assert perfect.fleiss is not None
    assert perfect.fleiss.kappa == 1
    turned = {"exp": "gen", "gen": "avd", "avd": "exp"}
    rows = [(f"i{n}", "A", turned[LEVELS[n % 3]], LEVELS[n % 3]) for n in range(30)]
    # po = 0, pe = 1/3 exactly in thirds: κ = -1/2 up to the rounding of 1/3.
    assert measure(rows).raters[0].kappa == pytest.approx(-0.5, abs=1e-15)


def test_labels_that_are_no_levels() -> None:
    found = measure([*crowd(6), ("i9", "A", "unsure", "exp")])
    assert found.levels == LEVELS
    assert found.labels == (*LEVELS, "unsure")
    assert found.raters[0].confusion[0][3] == 1
    assert all(len(row) == 4 for row in found.raters[0].confusion)
    assert len(found.raters[0].confusion) == 3


def test_domains_have_rows_of_their_own() -> None:
    rows = crowd(12, names="AB")
    entries = [Annotation(*row, "med" if int(row[0][1:]) < 6 else "leg") for row in rows]
    found = agreement(Annotations("here", tuple(entries)))
    named = [(rater.domain, rater.annotator, rater.n) for rater in found.raters]
    assert named == [
        ("med", "A", 6), ("med", "B", 6), ("med", "pooled", 12),
        ("leg", "A", 6), ("leg", "B", 6), ("leg", "pooled", 12),
        (None, "A", 12), (None, "B", 12), (None, "pooled", 24),
    ]  # fmt: skip
    one = agreement(annotations(rows, "med"))
    assert {rater.domain for rater in one.raters} == {None}


def test_an_item_keeps_its_labels_when_items_are_drawn() -> None:
    """Ten equal annotators know no more than one: the pooled interval stays as wide as his."""
    one = crowd(60, 0.7, "A")
    ten = [(item, name, label, level) for item, _, label, level in one for name in "ABCDEFGHIJ"]
    wide, same = measure(one).raters[-1], measure(ten).raters[-1]
    assert same.n == 600
    # Of the same draws: the same counts times ten, so equal up to f64 rounding.
    assert same.accuracy_interval == pytest.approx(wide.accuracy_interval, abs=1e-12)
    assert same.kappa_interval == pytest.approx(wide.kappa_interval, abs=1e-12)


def test_intervals_are_reproducible_and_cover() -> None:
    assert measure(crowd()) == measure(crowd())
    random_ = np.random.default_rng(3)
    shares = np.array([[0.3, 0.05, 0.0], [0.05, 0.25, 0.03], [0.0, 0.02, 0.3]])
    truth = kappas((shares * 1_000_000).astype(np.int64)[None])[0]
    covered = 0
    for _ in range(80):
        interval = table_interval(random_.multinomial(200, shares.ravel()).reshape(3, 3))
        assert interval is not None
        covered += interval[0] <= truth <= interval[1]
    # 80 tries at 95 %: sd 2.5 %; five of them, and 2 % for a percentile interval at n = 200.
    assert covered / 80 > 0.95 - 0.125 - 0.02


def test_items_are_drawn_with_replacement() -> None:
    (interval,) = item_intervals(100, lambda w: (w[:, :50].sum(1) / 100)[:, None])
    # A share of 1/2 in 100: sd .05, so 1.96 sd is .098; .01 for the steps of a count.
    assert interval is not None
    assert interval == pytest.approx((0.402, 0.598), abs=0.0101)


def test_the_json_is_complete() -> None:
    found = measure(crowd(9)).to_dict()
    assert set(found) == {"source", "items", "levels", "labels", "raters", "pairs", "fleiss"}
    assert found["raters"][0]["accuracy"] == found["raters"][0]["right"] / 9
    assert len(found["pairs"]) == len(list(itertools.combinations("ABC", 2)))
    assert Path(found["source"]).name == "here"
