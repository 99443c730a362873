"""The map at a part of its cost: every label, or its measured error."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from avops.errors import RecipeError
from avops.search.space import Point
from avops.search.strategies.refine import COARSE, Audit, Refine
from avops.search.strategies.strategy import Outlook, Told
from search.truths import Truth, noise, play, truth

Played = tuple[Refine, tuple[Point, ...], Outlook, NDArray[np.int16]]


def mapped(study: Truth, workers: int = 8) -> Played:
    """(strategy, measured points, its outlook, true labels)."""
    strategy = Refine(study.problem)
    points = play(study, strategy, len(study.problem.space), workers)
    outlook = strategy.outlook(study.told(points))
    assert outlook is not None
    return strategy, points, outlook, labels(study)


def labels(study: Truth) -> NDArray[np.int16]:
    return study.problem.board.labels(study.formula(study.problem.space.lams))


@pytest.fixture(scope="module")
def cube() -> tuple[Truth, Played]:
    """Three vectors at 11 steps each."""
    study = truth(3, steps=5, seed=2)
    return study, mapped(study)


def test_the_whole_map_costs_less_than_two_fifths(cube: tuple[Truth, Played]) -> None:
    study, (_, points, outlook, true) = cube
    assert len(set(points)) == len(points) <= 0.4 * len(study.problem.space)
    wrong = (outlook.labels != true).any(axis=1)
    assert wrong.mean() <= 0.005
    # Nothing reachable is missed, and only measured points count.
    assert study.found(points) == study.reachable


def test_what_it_says_of_itself(cube: tuple[Truth, Played]) -> None:
    study, (strategy, points, outlook, true) = cube
    told = study.told(points)
    measured = [study.problem.space.row(point) for point in points]
    assert (outlook.sure[measured] == 1).all()
    assert (outlook.labels[measured] == true[measured]).all()
    inferred = np.setdiff1d(np.arange(len(true)), measured)
    # Never surer than the audit allows.
    assert (outlook.sure[inferred] < 1).all()
    assert outlook.fit.trusted
    assert outlook.fit.coverage > 0.8
    for want in study.reachable ^ set(study.problem.wants):
        assert 0 <= outlook.chance[want] < 0.1
    last = strategy.ask(told, 4)
    assert last.points == ()
    assert last.why_done.startswith("no label is in more doubt than 0.01; inferred labels: 0 of ")
    assert last.note in last.why_done


def test_the_best_margins_are_measured(cube: tuple[Truth, Played]) -> None:
    study, (_, points, _, _) = cube
    board, wants = study.problem.board, study.problem.wants
    hit, margins = board.judge(study.formula(study.problem.space.lams), wants)
    _, found = board.judge(study.told(points).scores, wants)
    short = (margins.max(axis=0) - found.max(axis=0))[hit.any(axis=0)]
    assert short.max() <= 1 / 20  # one item of a domain's twenty


def test_it_begins_with_a_coarse_grid_and_a_random_audit() -> None:
    study = truth(2, steps=10)
    asked = Refine(study.problem).ask(study.told(()), 1000)
    coarse = [p for p, why in zip(asked.points, asked.reasons, strict=True) if why == "coarse grid"]
    audit = [p for p, why in zip(asked.points, asked.reasons, strict=True) if why == "audit"]
    assert {p for point in coarse for p in point} == {-10, -5, 0, 5, 10}
    assert len(coarse) == 25 <= COARSE * 441
    assert len(audit) == 16
    assert not set(coarse) & set(audit)
    other = Refine(replace(study.problem, seed=1)).ask(study.told(()), 1000)
    assert other.points[:25] == asked.points[:25]
    assert other.points[25:] != asked.points[25:]


def test_a_coarse_grid_is_there_on_one_axis_too() -> None:
    study = truth(1, seed=1)
    _, points, outlook, true = mapped(study, workers=1)
    assert set(points[:5]) == {(-10,), (-5,), (0,), (5,), (10,)}
    assert len(points) <= 12
    assert (outlook.labels == true).all()


def test_it_is_a_function_of_what_it_was_told() -> None:
    study = truth(2, seed=3, steps=6)
    lived = Refine(study.problem)
    points = play(study, lived, 169, workers=3)
    for count in range(0, len(points), 7):
        now = study.told(points[:count], points[count : count + 2])
        asked = lived.ask(now, 3)
        assert asked == Refine(study.problem).ask(now, 3)
        assert not set(asked.points) & {*now.points, *now.pending}


def test_pending_points_are_awaited() -> None:
    study = truth(2, seed=3, steps=6)
    strategy = Refine(study.problem)
    first = strategy.ask(study.told(()), 1000).points
    waiting = strategy.ask(study.told((), first), 3)
    assert (waiting.points, waiting.why_done) == ((), "")
    points = play(study, strategy, 169)
    rest = strategy.ask(study.told(points[:-1], points[-1:]), 3)
    assert rest.points or not rest.why_done


def test_rough_scores_cost_more_and_the_error_is_stated() -> None:
    """Noise that no neighbour shares: the audit sees what the model cannot."""
    study = truth(2, seed=1, steps=10, rough=0.02)
    smooth = truth(2, seed=1, steps=10)
    strategy, points, outlook, true = mapped(study)
    assert len(points) > len(mapped(smooth)[1])
    wrong = (outlook.labels != true).any(axis=1).mean()
    assert wrong <= 0.02
    assert "audited" in strategy.ask(study.told(points), 1).why_done


def test_what_no_model_fits_is_measured_whole() -> None:
    study = noise(2, steps=3)
    strategy, points, outlook, true = mapped(study)
    assert len(points) >= 0.9 * 49
    assert (outlook.labels == true).mean() > 0.9
    if len(points) == 49:
        assert strategy.ask(study.told(points), 1).why_done == "every point was asked for"


def test_no_outlook_before_the_coarse_grid() -> None:
    study = truth(1)
    first = Refine(study.problem).ask(study.told(()), 100).points
    assert Refine(study.problem).outlook(study.told(first[:-1])) is None
    assert Refine(study.problem).outlook(study.told(first)) is not None


def test_guards_are_part_of_the_wants() -> None:
    study = truth(2, seed=1, steps=6, guard=True)
    _, points, outlook, true = mapped(study)
    assert study.found(points) == study.reachable
    assert (outlook.labels == true).all(axis=1).mean() > 0.98


def test_audits_state_their_intervals() -> None:
    assert str(Audit(0.01, 0, 0)) == "inferred labels: none could be audited"
    text = "inferred labels: 2 of 100 audited points wrong (95 %: 0.6% to 7.0%)"
    assert str(Audit(0.01, 100, 2)) == text
    assert Audit(0.01, 99, 2).error == 0.025


@pytest.mark.parametrize("options", [{"doubt": 0}, {"doubt": 1.5}, {"audit": -1}, {"audit": 1}])
def test_options_that_are_refused(options: dict[str, float]) -> None:
    what, value = next(iter(options.items()))
    with pytest.raises(RecipeError) as error:
        Refine(truth(1).problem, **options)
    assert f"refine: {what} is {value}, expected a share between 0 and 1" in str(error.value)


def test_told_of_nothing_it_needs_no_model() -> None:
    study = truth(1)
    everything = study.problem.space.points
    asked = Refine(study.problem).ask(Told((), study.told(()).scores, everything), 2)
    assert (asked.points, asked.why_done) == ((), "every point was asked for")
