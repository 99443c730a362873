"""What can be said of each wanted combination, and on what ground.

A verdict rests on measurements alone, save the remaining chance, which is a model's and is marked
so. The winner was picked because it looked best on the search items: its interval on these is too
bright, and that on held-out items is the one to believe. One pick per combination goes to the
held-out items; picking among several there would make that interval too bright as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from avops.score import wilson
from avops.search.board import check_row

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from avops.search.board import Board, Part, Want
    from avops.search.space import Point, Space
    from avops.search.strategies.strategy import Outlook, Problem, Told

Verdict = Literal["reached", "confirmed", "not found", "exhausted", "unreachable"]
VERDICTS: Mapping[Verdict, str] = {
    "confirmed": "measured as a hit, and again on held-out items",
    "reached": "measured as a hit on the search items; not shown on others",
    "not found": "no measured point hits it; others may",
    "exhausted": "no measured point hits it, and every plausible one was measured",
    "unreachable": "no point of this grid hits it: all were measured",
}


@dataclass(frozen=True)
class Share:
    """A level's preference accuracy in one domain (or guard): wins of n, Wilson's 95 % interval."""

    domain: str
    level: str
    wins: float
    n: int
    share: float
    low: float
    high: float


@dataclass(frozen=True)
class Finding:
    """A wanted combination, its verdict and its winner.

    point: the winner; None without a hit. margin: its smallest distance from a bound. around: the
    mean margin of its measured neighbours, None without any. shares: of the winner on the search
    items, every domain and level, then the guards. held_out: of the same point on the held-out
    items; held_margin: its margin there, negative where it is no hit (0 may be either: ``held``
    says). None and empty where it was not measured on them. chance: a model's probability that
    some unmeasured point hits; None for combinations with a hit, without a model, and when every
    point was measured. closest: the largest margin measured, and its point, without a hit.
    """

    want: Want
    verdict: Verdict
    point: Point | None = None
    margin: float | None = None
    around: float | None = None
    shares: tuple[Share, ...] = ()
    held: bool | None = None
    held_margin: float | None = None
    held_out: tuple[Share, ...] = ()
    chance: float | None = None
    closest: Point | None = None

    @property
    def hit(self) -> bool:
        """Whether a measured point hits it."""
        return self.point is not None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-able values."""
        found = asdict(self) | {"want": str(self.want)}
        for name in ("point", "closest"):
            found[name] = None if found[name] is None else list(found[name])
        found["shares"] = list(found["shares"])
        found["held_out"] = list(found["held_out"])
        return found


@dataclass(frozen=True, eq=False)
class HoldOut:
    """board: the held-out items (and guards). rows: the picks' scores on them."""

    board: Board
    rows: Mapping[Point, NDArray[np.float32]]


def findings(
    problem: Problem,
    told: Told,
    *,
    outlook: Outlook | None = None,
    holdout: HoldOut | None = None,
    exhausted: bool = False,
) -> tuple[Finding, ...]:
    """One finding per wanted combination, in their order.

    exhausted: every point that a trusted model finds plausible was measured. Raises DataError for
    held-out scores that do not fit their board, NonFiniteError for NaN or infinity among them.
    """
    everything = set(told.points) >= set(problem.space.points)
    hit, margins = problem.board.judge(told.scores, problem.wants)
    winners = _winners(problem, told, hit, margins)
    found = []
    for column, want in enumerate(problem.wants):
        if want in winners:
            found.append(_reached(problem, told, want, winners[want], holdout))
            continue
        verdict: Verdict = (
            "unreachable" if everything else "exhausted" if exhausted else "not found"
        )
        chance = None if everything or outlook is None else outlook.chance.get(want)
        closest, margin = None, None
        if told.points:
            row = int(margins[:, column].argmax())
            closest, margin = told.points[row], float(margins[row, column])
        found.append(
            Finding(
                want,
                verdict,
                margin=margin,
                chance=None if chance is None else float(chance),
                closest=closest,
            )
        )
    return tuple(found)


def picks(problem: Problem, told: Told) -> dict[Want, Point]:
    """The winner of each wanted combination that was hit: what to measure on held-out items.

    Among hits: the largest margin; then the largest mean margin of the measured neighbours (none
    measured: last), the smallest Σ|λ|, the first measured.
    """
    judged = problem.board.judge(told.scores, problem.wants)
    return {want: winner.point for want, winner in _winners(problem, told, *judged).items()}


@dataclass(frozen=True)
class _Winner:
    point: Point
    row: int
    margin: float
    around: float | None


def _winners(
    problem: Problem, told: Told, hit: NDArray[np.bool_], margin: NDArray[np.float64]
) -> dict[Want, _Winner]:
    """The best hit of each wanted combination that has one."""
    rows = {point: row for row, point in enumerate(told.points)}
    found = {}
    for column, want in enumerate(problem.wants):
        hits = np.flatnonzero(hit[:, column])
        if not len(hits):
            continue
        top = hits[margin[hits, column] == margin[hits, column].max()]
        places = [
            _Winner(
                told.points[row],
                row,
                float(margin[row, column]),
                _around(problem.space, told.points[row], rows, margin[:, column]),
            )
            for row in top.tolist()
        ]
        found[want] = max(
            places,
            key=lambda one: (
                -np.inf if one.around is None else one.around,
                -_size(problem.space, one.point),
                -one.row,
            ),
        )
    return found


def _around(
    space: Space, point: Point, rows: Mapping[Point, int], margins: NDArray[np.float64]
) -> float | None:
    """The mean margin of the measured neighbours."""
    measured = [rows[near] for near in space.neighbours(point) if near in rows]
    return float(margins[measured].mean()) if measured else None


def _size(space: Space, point: Point) -> Fraction:
    """Σ|λ| over the axes, exactly."""
    return sum(
        (abs(place) * axis.step for place, axis in zip(point, space.axes, strict=True)),
        Fraction(0),
    )


def _reached(
    problem: Problem, told: Told, want: Want, winner: _Winner, holdout: HoldOut | None
) -> Finding:
    finding = Finding(
        want,
        "reached",
        point=winner.point,
        margin=winner.margin,
        around=winner.around,
        shares=_shares(problem.board, told.scores[winner.row]),
    )
    row = None if holdout is None else holdout.rows.get(winner.point)
    if holdout is None or row is None:
        return finding
    where = f"held-out scores of {problem.space.name(winner.point)}"
    check_row(row, holdout.board, where)
    hit, margin = holdout.board.judge(row[None], [want])
    held = bool(hit[0, 0])
    return Finding(
        **{
            **vars(finding),
            "verdict": "confirmed" if held else "reached",
            "held": held,
            "held_margin": float(margin[0, 0]),
            "held_out": _shares(holdout.board, row),
        }
    )


def _shares(board: Board, row: NDArray[np.float32]) -> tuple[Share, ...]:
    """Every domain and level of the items, then each guard's level over all of its items."""
    found = []
    wins = board.main.wins(row[None, board.spans[0]])[0]
    for d, domain in enumerate(board.main.domains):
        for k, level in enumerate(board.main.levels):
            found.append(_share(domain, level, wins[d, k], int(board.main.counts[d]), board.main))
    for guard, span in zip(board.guards, board.spans[1:], strict=True):
        own = guard.part.wins(row[None, span])[0].sum(axis=0)[guard.part.levels.index(guard.level)]
        found.append(_share(guard.name, guard.level, own, len(guard.part.of_item), guard.part))
    return tuple(found)


def _share(domain: str, level: str, units: Any, n: int, part: Part) -> Share:
    wins = int(units) / part.unit
    return Share(domain, level, wins, n, wins / n, *wilson(wins, n))
