"""The unmeasured points that promise most, without a model of the scores.

Shares between measured points are averages of theirs, weighted by distance^-4 (Shepard's way), and
may rise with the distance from the nearest one. A point promises a combination that was not found
yet, or a larger margin of one that was, or a label that its neighbours do not agree on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from avops.search.space import Point
    from avops.search.strategies.strategy import Problem, Told

_POWER = 2.0  # of the squared distance
_RISE = 0.35  # share per half an axis; both chosen on synthetic studies
_MOST_WANTS = 256  # considered at a time


class Nearby:
    """Keeps running sums over what it was told; told something else, it starts again."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        space = problem.space
        half = np.array([max(len(axis) - 1, 1) for axis in space.axes]) / 2
        self._at = space.grid / half
        self._forget()

    def ask(self, told: Told, taken: set[Point], count: int) -> tuple[list[Point], list[str]]:
        """At most ``count`` points that are not ``taken``, with reasons; none promise: none."""
        self._learn(told)
        board, space = self._problem.board, self._problem.space
        hit, margin = board.judge(told.scores, self._problem.wants)
        best = margin.max(axis=0)
        reached = hit.any(axis=0)
        free = np.ones(len(space), np.bool_)
        free[[space.row(point) for point in taken if point in space]] = False
        near = self._near.copy()
        for point in told.pending:
            near = np.minimum(near, self._away(point))
        points: list[Point] = []
        reasons: list[str] = []
        leads = self._leads(self._sums / self._weights[:, None])
        for kind, places in (("for", ~reached), ("larger margin of", reached)):
            wants = np.flatnonzero(places)
            shift = len(told.points) % len(wants) if len(wants) > _MOST_WANTS else 0
            wants = np.roll(wants, -shift)[:_MOST_WANTS]
            means = {w: self._margins(leads, w) for w in wants.tolist()}
            left = dict(means)
            while left and len(points) < count and free.any():
                row, want, gain = -1, -1, -np.inf
                for w, mean in left.items():
                    worth = np.where(free, mean + _RISE * near, -np.inf)
                    most = int(worth.argmax())
                    if worth[most] - max(best[w], 0.0) > gain:
                        row, want, gain = most, w, float(worth[most] - max(best[w], 0.0))
                if gain <= 0 and kind != "for":
                    break
                points.append(space.points[row])
                reasons.append(f"{kind} {self._problem.wants[want]}")
                free[row] = False
                near = np.minimum(near, self._away(space.points[row]))
                del left[want]
                left = left or dict(means)
        return points, reasons

    def _leads(self, shares: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
        """(shares [point, domain, level], by how much each is above all others, guards above)."""
        main, guards = self._problem.board.main, self._problem.board.guards
        count = len(main.domains) * len(main.levels)
        table = shares[:, :count].reshape(-1, len(main.domains), len(main.levels))
        lead = np.empty_like(table)
        for level in range(len(main.levels)):
            others = np.delete(table, level, axis=-1).max(axis=-1, initial=0.0)
            lead[..., level] = table[..., level] - np.maximum(others, 1 / len(main.levels))
        held = np.full(len(shares), np.inf)
        for place, guard in enumerate(guards):
            held = np.minimum(held, shares[:, count + place] - float(guard.floor))
        return table, lead, held

    def _margins(self, leads: tuple[NDArray[np.float64], ...], number: int) -> NDArray[np.float64]:
        """The margin of want ``number`` at every point; ``leads``: see ``_leads``."""
        main, want = self._problem.board.main, self._problem.wants[number]
        table, lead, found = leads
        for domain, level in want.levels:
            d, k = main.domains.index(domain), main.levels.index(level)
            found = np.minimum(found, lead[:, d, k])
            if floor := float(want.floor(domain)):
                found = np.minimum(found, table[:, d, k] - floor)
        return found

    def _forget(self) -> None:
        main, guards = self._problem.board.main, self._problem.board.guards
        width = len(main.domains) * len(main.levels) + len(guards)
        self._sums = np.zeros((len(self._at), width))
        self._weights = np.zeros(len(self._at))
        self._near = np.full(len(self._at), np.inf)
        self._known: tuple[Point, ...] = ()
        self._shares = np.empty((0, width))

    def _learn(self, told: Told) -> None:
        board = self._problem.board
        shares = np.concatenate(
            [
                board.shares(told.scores).reshape(len(told.points), -1),
                board.guard_shares(told.scores),
            ],
            axis=1,
        )
        before = len(self._known)
        if told.points[:before] != self._known or (shares[:before] != self._shares).any():
            self._forget()
            before = 0
        # One at a time and in order: the sums then do not depend on when they were made.
        for point, share in zip(told.points[before:], shares[before:], strict=True):
            away = self._away(point)
            weight = (away * away + 1e-6) ** -_POWER
            self._sums += weight[:, None] * share
            self._weights += weight
            self._near = np.minimum(self._near, away)
        self._known, self._shares = told.points, shares

    def _away(self, point: Point) -> NDArray[np.float64]:
        """The distance of every point from ``point``, in halves of the axes."""
        half = np.array([max(len(axis) - 1, 1) for axis in self._problem.space.axes]) / 2
        moved = self._at - np.asarray(point) / half
        return np.asarray(np.sqrt((moved * moved).sum(axis=1)))
