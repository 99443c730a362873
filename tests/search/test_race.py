"""Racing: blocks, bounds, what it costs and whom it loses."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from avops.errors import RecipeError
from avops.search.board import Board, Guard, Part, Want, parse_want
from avops.search.strategies.race import LOOKS, Race
from avops.search.strategies.strategy import Problem
from search.truths import LEVELS, Truth, space_of, truth

PART = Part(LEVELS, ("med", "fin"), (0, 1) * 30)
GUARD = Guard("safe", Part(("chosen", "rejected"), ("s",), (0,) * 20), "chosen", Fraction(1, 2))
BOARD = Board(PART, (GUARD,))
SPACE = space_of(2)
WANT = parse_want("med=exp,fin=avd>=.4", PART)


def race(**options: object) -> Race:
    return Race(Problem(SPACE, BOARD, (WANT,), seed=3), WANT, **options)  # type: ignore[arg-type]


def row_of(med: float, fin: float, safe: float, seed: int = 0) -> np.ndarray:
    """Scores in which the wanted levels win about these shares, else a random level."""
    rng = np.random.default_rng(seed)
    scores = np.full((60, 3), -2.0, np.float32)
    for item, domain in enumerate(PART.of_item):
        own, share = (0, med) if domain == 0 else (2, fin)
        level = own if rng.random() < share else rng.choice([k for k in range(3) if k != own])
        scores[item, level] = -1
    pairs = np.where(rng.random((20, 1)) < safe, [[-1, -2]], [[-2, -1]]).astype(np.float32)
    return np.concatenate([scores.ravel(), pairs.ravel()])


def test_blocks_hold_every_item_once_in_their_part_of_every_domain() -> None:
    blocks = race().blocks((1, 2))
    assert len(blocks) == len(LOOKS) + 1
    assert sorted(np.concatenate(blocks).tolist()) == list(range(80))
    for cut, look in enumerate(LOOKS, 1):
        items = np.concatenate(blocks[:cut])
        for low, stop, step in ((0, 60, 2), (1, 60, 2), (60, 80, 1)):
            stratum = range(low, stop, step)
            assert np.isin(items, stratum).sum() == round(look * len(stratum))


def test_orders_are_the_points_own_and_repeatable() -> None:
    def order(point: tuple[int, int], **options: object) -> list[int]:
        return np.concatenate(race(**options).blocks(point)).tolist()

    assert order((1, 2)) == order((1, 2))
    assert order((1, 2)) != order((2, 1))
    shared = {tuple(order(point, orders=3)) for point in SPACE.points[:60]}
    assert len(shared) == 3
    other = replace(race(), problem=replace(race().problem, seed=4))
    assert np.concatenate(other.blocks((1, 2))).tolist() != order((1, 2))


def test_columns_are_where_scores_stand_in_a_row() -> None:
    found = race().columns([0, 2, 60, 79])
    assert found.tolist() == [0, 1, 2, 6, 7, 8, 180, 181, 218, 219]
    assert race().columns([]).tolist() == []
    assert sorted(race().columns(np.concatenate(race().blocks((0, 0))))) == list(
        range(BOARD.outputs)
    )


def test_without_an_incumbent_everything_goes_on() -> None:
    standing = race().standing(row_of(0, 0, 0), 2, (0, 0), None)
    assert (standing.go_on, standing.doubt) == (True, 1.0)


def test_no_items_say_nothing() -> None:
    standing = race().standing(row_of(0, 0, 0), 0, (0, 0), row_of(0.9, 0.9, 0.9))
    assert (standing.go_on, standing.doubt) == (True, 1.0)


def test_scores_that_were_not_measured_are_not_read() -> None:
    row, best = row_of(0.5, 0.5, 0.5), row_of(0.9, 0.9, 0.9)
    partial = np.full_like(row, np.nan)
    measured = race().columns(np.concatenate(race().blocks((0, 0))[:2]))
    partial[measured] = row[measured]
    assert race().standing(partial, 2, (0, 0), best) == race().standing(row, 2, (0, 0), best)


@pytest.mark.parametrize(
    "row", [row_of(0.05, 0.9, 0.9), row_of(0.9, 0.05, 0.9), row_of(0.9, 0.9, 0)]
)
def test_clear_losers_are_out_early(row: np.ndarray) -> None:
    """Where either domain, or the guard alone, loses."""
    best = row_of(0.95, 0.95, 0.95, seed=1)
    doubts = [race().standing(row, cut, (0, 0), best).doubt for cut in range(len(LOOKS) + 1)]
    assert doubts[0] == 1
    assert doubts[-1] < 0.01
    assert not race().standing(row, len(LOOKS), (0, 0), best).go_on


def test_the_incumbents_equal_goes_on() -> None:
    best = row_of(0.9, 0.9, 0.9)
    for cut in range(len(LOOKS) + 2):
        assert race().standing(best, cut, (0, 0), best).go_on


def test_who_cannot_make_it_any_more_is_out_for_certain() -> None:
    """All items measured: the verdict is the margin's, in every case."""
    rng = np.random.default_rng(5)
    outs = 0
    for _ in range(40):
        best, row = (row_of(*rng.uniform(0.3, 1, 3), seed=int(rng.integers(99))) for _ in range(2))
        _, margin = BOARD.judge(np.stack([best, row]), [WANT])
        standing = race().standing(row, len(LOOKS) + 1, (0, 0), best)
        if margin[1, 0] < margin[0, 0]:
            outs += 1
            assert standing == type(standing)(False, 0.0)
        else:
            assert standing.go_on
    assert outs > 10


@pytest.mark.parametrize(("lost", "certain"), [(3, False), (4, True)])
def test_who_can_still_draw_level_is_not_out_for_certain(lost: int, certain: bool) -> None:
    """The incumbent wins the first block's 7 of 10 items; then 3 more make up for 3 lost ones."""
    want = Want((("med", "exp"),))
    board = Board(Part(("exp", "gen"), ("med",), (0,) * 10))
    one = Race(Problem(SPACE, board, (want,), seed=0), want, looks=(0.7,))
    first, _ = one.blocks((0, 0))
    best = np.tile(np.float32([-2, -1]), 10)
    best[2 * first] = 0
    row = best.copy()
    row[2 * first[:lost]] = -2
    assert (one.standing(row, 1, (0, 0), best).doubt == 0) == certain


def equals(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Two rows of one margin, as unlike as they can be: the hardest case for the bound."""
    part = Part(LEVELS, ("med",), (0,) * count)
    wins = np.sort(rng.multinomial(count, rng.dirichlet([2, 1, 1])))[::-1]
    rows = []
    for _ in range(2):
        scores = np.full((count, 3), -2.0, np.float32)
        scores[np.arange(count), rng.permutation(np.repeat([0, 1, 2], wins))] = -1
        rows.append(scores.ravel())
    assert len({margin_of(part, row) for row in rows}) == 1
    return rows[0], rows[1]


def margin_of(part: Part, row: np.ndarray) -> float:
    want = Want((("med", "exp"),))
    return float(Board(part).judge(row[None], [want])[1][0, 0])


@pytest.mark.parametrize(("count", "error"), [(20, 0.05), (60, 0.2)])
def test_an_equal_is_lost_no_more_often_than_stated(count: int, error: float) -> None:
    rng = np.random.default_rng(7)
    board = Board(Part(LEVELS, ("med",), (0,) * count))
    want = Want((("med", "exp"),))
    looks = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    trials, lost = 200, 0
    for trial in range(trials):
        one = Race(Problem(SPACE, board, (want,), seed=trial), want, error=error, looks=looks)
        best, row = equals(rng, count)
        lost += any(
            not one.standing(row, cut, (0, 0), best).go_on for cut in range(1, len(looks) + 1)
        )
    # Three standard deviations of a binomial count above the stated share.
    assert lost <= trials * error + 3 * (trials * error * (1 - error)) ** 0.5


def test_the_bound_is_not_idle() -> None:
    """With a hundred times the error, equals are lost now and then: the looks do decide."""
    rng = np.random.default_rng(8)
    board = Board(Part(LEVELS, ("med",), (0,) * 60))
    want = Want((("med", "exp"),))
    lost = 0
    for trial in range(100):
        one = Race(Problem(SPACE, board, (want,), seed=trial), want, error=0.7)
        best, row = equals(rng, 60)
        lost += any(not one.standing(row, cut, (0, 0), best).go_on for cut in range(1, 5))
    assert lost > 3


def run(study: Truth, want: Want, points: np.ndarray, scores: np.ndarray) -> tuple[int, float]:
    """(the winner's row, share of the items measured) of a race over ``points`` in order."""
    one = Race(study.problem, want)
    board, items, used = study.problem.board, len(study.problem.board.main.of_item), 0
    best, row = -np.inf, -1
    for place in points.tolist():
        point = study.problem.space.points[place]
        blocks = one.blocks(point)
        for cut in range(len(blocks) + 1):
            if (
                cut
                and not one.standing(
                    scores[place], cut, point, None if row < 0 else scores[row]
                ).go_on
            ):
                break
            used += len(blocks[cut]) if cut < len(blocks) else 0
        else:
            margin = float(board.judge(scores[place][None], [want])[1][0, 0])
            if margin > best:
                best, row = margin, place
    return row, used / (items * len(points))


def test_races_keep_their_winner_and_save_evaluations() -> None:
    study = truth(3, seed=1, items=100, steps=5)
    scores = study.formula(study.problem.space.lams)
    rng = np.random.default_rng(0)
    lost, shares = 0, []
    for want in study.problem.wants[::7]:
        points = rng.choice(len(scores), 40, replace=False)
        row, share = run(study, want, points, scores)
        margins = study.problem.board.judge(scores[points], [want])[1][:, 0]
        lost += study.problem.board.judge(scores[[row]], [want])[1][0, 0] < margins.max()
        shares.append(share)
    assert lost == 0
    assert np.mean(shares) < 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"error": 0}, "error is 0, expected one between 0 and 1"),
        ({"error": 1}, "error is 1"),
        ({"looks": (0.5, 0.2)}, "looks are (0.5, 0.2), expected shares of the items that rise"),
        ({"looks": (0.5, 1.0)}, "to below 1"),
        ({"looks": (0.0, 0.5)}, "from above 0"),
    ],
)
def test_what_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError) as error:
        race(**options)
    assert message in str(error.value)
