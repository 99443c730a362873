"""The exhaustive grid: orders, stopping, purity; and the search without a model."""

from __future__ import annotations

import itertools
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avops.errors import RecipeError
from avops.recipe import Source
from avops.search.board import parse_want
from avops.search.space import Axis, Point, Space
from avops.search.strategies.grid import ORDERS, Grid, coarse_order, fineness, point_fineness
from avops.search.strategies.strategy import Problem, Told
from search.truths import Truth, board_of, noise, play, space_of, truth


def axis(low: int, high: int, name: str = "med") -> Axis:
    return Axis(Source(name, name), low, high, Fraction(1, 10))


def problem_of(space: Space) -> Problem:
    board = board_of(1, 2)
    return Problem(space, board, board.combinations())


def told(problem: Problem, points: tuple[Point, ...], pending: tuple[Point, ...] = ()) -> Told:
    return Told(points, np.zeros((len(points), problem.board.outputs), np.float32), pending)


def all_of(problem: Problem, grid: Grid, count: int = 7) -> list[Point]:
    points: tuple[Point, ...] = ()
    while asked := grid.ask(told(problem, points), count).points:
        assert len(asked) <= count
        points += asked
    return list(points)


def test_axes_are_halved_again_and_again() -> None:
    assert fineness(axis(-10, 10)).tolist() == [
        0, 4, 3, 2, 3, 1, 4, 3, 2, 3, 0, 3, 2, 3, 4, 1, 3, 2, 3, 4, 0,
    ]  # fmt: skip
    assert fineness(axis(0, 0)).tolist() == [0]
    assert fineness(axis(0, 1)).tolist() == [0, 0]
    assert fineness(axis(5, 9)).tolist() == [0, 2, 1, 2, 0]


@given(st.integers(-40, 0), st.integers(0, 40))
def test_fineness_looks_alike_on_both_sides(low: int, high: int) -> None:
    found = fineness(axis(low, high))
    assert found[0] == found[-1] == found[-low] == 0
    mirrored = fineness(axis(-high, -low))
    assert mirrored.tolist() == found[::-1].tolist()
    for depth in range(found.max() + 1):
        lines = np.flatnonzero(found <= depth)
        # Halved rounds up: the widest gap at a depth is at most the half above of the one before.
        assert np.diff(lines, prepend=lines[0]).max() <= -(-max(high, -low) // 2**depth) + 1


spaces = st.builds(
    lambda ends, bound: Space(
        tuple(axis(low, high, str(k)) for k, (low, high) in enumerate(ends)),
        bound=None if bound is None else Fraction(bound, 10),
    ),
    st.lists(st.tuples(st.integers(-5, 2), st.integers(2, 4)), min_size=1, max_size=4).map(
        lambda ends: [(low, max(low, high)) for low, high in ends]
    ),
    st.one_of(st.none(), st.integers(8, 20)),
)


@given(spaces)
def test_the_coarse_order_has_every_point_once(space: Space) -> None:
    order = coarse_order(space)
    assert sorted(order.tolist()) == list(range(len(space)))
    finenesses = point_fineness(space)[order]
    assert (np.diff(finenesses) >= 0).all()


def test_ends_and_origin_come_first_outward() -> None:
    space = space_of(3)
    first = [space.points[row] for row in coarse_order(space)[:27]]
    assert first[0] == (0, 0, 0)
    assert set(first[1:7]) == {
        tuple(sign * 10 * (k == n) for k in range(3)) for n in range(3) for sign in (-1, 1)
    }
    assert set(first) == set(itertools.product((-10, 0, 10), repeat=3))


def test_the_coarse_order_fills_the_space_evenly() -> None:
    """Any beginning is spread: the farthest unmeasured point is nearer than in a random order."""
    space = space_of(2, steps=16)
    order = coarse_order(space)
    rng = np.random.default_rng(0)
    for count in (25, 60, 120, 400):

        def reach(rows: np.ndarray, count: int = count) -> float:
            away = space.lams[:, None] - space.lams[rows[:count]]
            return float(np.sqrt((away**2).sum(axis=-1)).min(axis=1).max())

        assert reach(order) < np.median([reach(rng.permutation(len(space))) for _ in range(9)])


@pytest.mark.parametrize("order", ORDERS)
def test_every_point_is_asked_for_once(order: str) -> None:
    study = truth(2, steps=3)
    grid = Grid(study.problem, order=order)
    points = play(study, grid, 1000, workers=4)
    assert len(points) == len(set(points)) == 49
    assert set(points) == set(study.problem.space.points)
    last = grid.ask(study.told(points), 1)
    assert last.points == ()
    assert last.why_done == "all 49 points were asked for"


def test_in_order_is_the_spaces_order() -> None:
    problem = problem_of(space_of(2, steps=2))
    assert all_of(problem, Grid(problem, order="lexicographic")) == list(problem.space.points)


def test_pending_points_are_not_asked_for() -> None:
    problem = problem_of(space_of(1, steps=2))
    grid = Grid(problem)
    first = grid.ask(told(problem, ()), 2).points
    assert grid.ask(told(problem, (), first), 5).points == grid.ask(told(problem, first), 5).points
    asked = grid.ask(told(problem, first[:1], first[1:]), 9)
    assert set(asked.points) == set(problem.space.points) - set(first)
    assert len(asked.reasons) == len(asked.points)


def test_stops_when_everything_was_found_only_if_told_to() -> None:
    whole = truth(2, steps=4)
    reachable = tuple(want for want in whole.problem.wants if want in whole.reachable)
    study = Truth(replace(whole.problem, wants=reachable), whole.formula)
    points = play(study, Grid(study.problem, stop="found"), 1000)
    assert len(points) < len(study.problem.space)
    assert study.found(points) == study.reachable == set(reachable)
    assert study.found(points[:-1]) != study.reachable
    done = Grid(study.problem, stop="found").ask(study.told(points), 1)
    assert done.why_done == "every wanted combination was found"
    assert Grid(study.problem).ask(study.told(points), 1).points


@pytest.mark.parametrize(("what", "known"), [("order", "coarse, best"), ("stop", "all, found")])
def test_unknown_options_are_refused(what: str, known: str) -> None:
    with pytest.raises(RecipeError) as error:
        Grid(problem_of(space_of(1)), **{what: "sideways"})
    assert f"grid: no {what} 'sideways', expected one of {known}" in str(error.value)


def replay(study: Truth, order: str, points: tuple[Point, ...]) -> None:
    """A strategy that is told everything at once asks what one asked that lived through it."""
    lived = Grid(study.problem, order=order)
    for count in range(0, len(points), 5):
        now = study.told(points[:count], points[count : count + 2])
        asked = lived.ask(now, 3)
        fresh = Grid(study.problem, order=order).ask(now, 3)
        assert asked == fresh


@pytest.mark.parametrize("guard", [False, True])
def test_best_first_is_a_function_of_what_it_was_told(guard: bool) -> None:
    study = truth(2, steps=5, guard=guard)
    points = play(study, Grid(study.problem, order="best"), 40)
    replay(study, "best", points)
    # Told of other measurements, it forgets: the same instance, another study's history.
    lived = Grid(study.problem, order="best")
    lived.ask(study.told(points[:20]), 1)
    other = Told(points[:20], study.told(points[:20]).scores[:, ::-1].copy())
    assert lived.ask(other, 2) == Grid(study.problem, order="best").ask(other, 2)
    assert (
        lived.ask(study.told(points[:8]), 2).points
        == points[8:9] + lived.ask(study.told(points[:8]), 2).points[1:]
    )


def test_best_first_finds_combinations_much_sooner() -> None:
    study = truth(3, seed=1)
    points = play(study, Grid(study.problem, order="best"), 60, all_found=True)
    assert study.found(points) == study.reachable
    assert len(study.reachable) > 20
    coarse = play(study, Grid(study.problem), 3 * len(points))
    assert study.found(coarse) < study.reachable


def test_best_first_with_workers_and_without_neighbourhoods() -> None:
    study = truth(2, seed=1)
    points = play(study, Grid(study.problem, order="best"), 120, workers=8, all_found=True)
    assert study.found(points) == study.reachable
    bare = noise(2, steps=3)
    assert len(set(play(bare, Grid(bare.problem, order="best"), 100))) == 49


def test_best_first_for_one_want_improves_its_margin() -> None:
    study = truth(2, seed=2)
    want = parse_want("med=avd,fin=exp", study.problem.board.main)
    one = Truth(Problem(study.problem.space, study.problem.board, (want,)), study.formula)
    points = play(one, Grid(one.problem, order="best"), 60)
    _, margins = one.problem.board.judge(one.formula(one.problem.space.lams), [want])
    _, found = one.problem.board.judge(one.told(points).scores, [want])
    # 60 of 441 points: within one item of twenty of the best there is.
    assert found.max() >= margins.max() - 1 / 20
