"""Racing for one wanted combination: candidates that clearly lose are not measured on all items.

Of every item the incumbent (the best point that was measured on all items) is known; a candidate's
items come in blocks of a random order of its own. After each block its margin is bounded above: as
soon as it is below the incumbent's, but for a stated probability of error, the candidate is out.

The margin is the smallest of several means over a domain's items: the share of the wanted level
less that of another, less 1/levels, less the least share; a guard's share less its floor. To beat
the incumbent every one of them must, so each is a test of "its mean over all items is at least the
incumbent's margin". The test is a bet at fair odds against that on item after item, drawn without
replacement (Waudby-Smith and Ramdas, NeurIPS 2020): were it true, the stake would be multiplied by
1/error at any time with probability at most error (Ville). So all looks together err with that
probability, whatever the scores are, and ties or a small variance need no case of their own. Bets
are laid on the candidate's values and on their differences from the incumbent's, which vary less
where both points are alike; the stakes are averaged, which keeps the bound.
"""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from avops.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from avops.search.board import Part, Want
    from avops.search.space import Point
    from avops.search.strategies.strategy import Problem

LOOKS = (0.1, 0.2, 0.35, 0.55)
"""Shares of the items after which a candidate is looked at, unless told otherwise."""

_CAUTION = 0.5  # of the largest bet that cannot lose the whole stake
_ROUNDING = 1e-9  # far above the rounding of sums of shares, far below the smallest share


@dataclass(frozen=True)
class Standing:
    """How a candidate stands after some items.

    go_on: whether to measure its next block. doubt: an upper bound on the probability of seeing
    such items from a candidate at least as good as the incumbent (1 without an incumbent).
    """

    go_on: bool
    doubt: float


@dataclass(frozen=True)
class Race:
    """The race for ``want``: pure functions of the problem, its seed and the scores.

    error: the probability with which a given candidate that is at least as good as the incumbent
    is put out, over all looks. looks: shares of the items, rising, below 1. orders: how many item
    orders candidates share (their token plans can then be kept); 0 for one each. With shared
    orders the stated probability holds only as far as the incumbent owes its place to other things
    than the order.
    """

    problem: Problem
    want: Want
    error: float = 0.01
    looks: tuple[float, ...] = LOOKS
    orders: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.error < 1:
            raise RecipeError(f"race: error is {self.error}, expected one between 0 and 1")
        if not all(a < b for a, b in itertools.pairwise((0.0, *self.looks, 1.0))):
            raise RecipeError(
                f"race: looks are {self.looks}, expected shares of the items that rise from above "
                "0 to below 1"
            )

    def blocks(self, point: Point) -> tuple[NDArray[np.intp], ...]:
        """The items to measure of ``point``, block after block; together every item once.

        Items are numbered as in a row of scores: the board's own, then those of each guard. Each
        block has its part of every domain and guard.
        """
        rng = np.random.default_rng([self.problem.seed, self._order_of(point)])
        cuts: list[list[NDArray[np.intp]]] = [[] for _ in range(len(self.looks) + 1)]
        for items in self._strata:
            mixed = rng.permutation(items)
            ends = [0, *(round(look * len(items)) for look in self.looks), len(items)]
            for block, (start, stop) in enumerate(itertools.pairwise(ends)):
                cuts[block].append(mixed[start:stop])
        return tuple(np.concatenate(parts) for parts in cuts)

    def columns(self, items: Sequence[int] | NDArray[np.intp]) -> NDArray[np.intp]:
        """Where the scores of ``items`` are in a row, level by level, in the items' order."""
        starts, widths = self._layout
        return np.concatenate(
            [np.empty(0, np.intp), *(starts[i] + np.arange(widths[i]) for i in items)]
        ).astype(np.intp)

    def standing(
        self, row: NDArray[np.float32], blocks: int, point: Point, best: NDArray[np.float32] | None
    ) -> Standing:
        """How ``point`` stands after its first ``blocks`` blocks, whose scores are in ``row``.

        The rest of the row is not read. best: the incumbent's whole row; None without one.
        """
        if best is None:
            return Standing(True, 1.0)
        items = np.concatenate(self.blocks(point)[:blocks]) if blocks else np.empty(0, np.intp)
        _, margin = self.problem.board.judge(best[None], [self.want])
        stakes = [
            stake
            for bound in self._bounds
            for stake in bound.stakes(row, best, items, float(margin[0, 0]))
        ]
        stake = float(np.mean(stakes)) if stakes else 1.0
        return Standing(stake < 1 / self.error, min(1.0, 1 / stake) if stake else 1.0)

    def _order_of(self, point: Point) -> int:
        digest = hashlib.sha256(repr(tuple(map(int, point))).encode()).digest()
        number = int.from_bytes(digest[:8], "big")
        return number % self.orders if self.orders else number

    @cached_property
    def _strata(self) -> tuple[NDArray[np.intp], ...]:
        """The items of each domain, then those of each guard."""
        board = self.problem.board
        of_item = np.asarray(board.main.of_item)
        found = [np.flatnonzero(of_item == d) for d in range(len(board.main.domains))]
        first = len(of_item)
        for guard in board.guards:
            found.append(first + np.arange(len(guard.part.of_item)))
            first += len(guard.part.of_item)
        return tuple(found)

    @cached_property
    def _layout(self) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Where each item's scores start in a row, and how many there are."""
        board = self.problem.board
        parts = [board.main, *(guard.part for guard in board.guards)]
        widths = np.concatenate([np.full(len(p.of_item), len(p.levels), np.intp) for p in parts])
        return np.cumsum(widths) - widths, widths

    @cached_property
    def _bounds(self) -> tuple[_Bound, ...]:
        board = self.problem.board
        main, starts = board.main, self._layout[0]
        found = []
        for domain, level in self.want.levels:
            d, k = main.domains.index(domain), main.levels.index(level)
            items = self._strata[d]
            others = [other for other in range(len(main.levels)) if other != k]
            found += [_Bound(main, items, starts, k, other, 0.0) for other in others]
            found.append(_Bound(main, items, starts, k, None, 1 / len(main.levels)))
            if floor := float(self.want.floor(domain)):
                found.append(_Bound(main, items, starts, k, None, floor))
        for guard, items in zip(board.guards, self._strata[len(main.domains) :], strict=True):
            k = guard.part.levels.index(guard.level)
            found.append(_Bound(guard.part, items, starts, k, None, float(guard.floor)))
        return tuple(found)


@dataclass(frozen=True, eq=False)
class _Bound:
    """A mean that has to be at least the margin: wins of ``level`` less ``other``'s, less floor."""

    part: Part
    items: NDArray[np.intp]
    starts: NDArray[np.intp]
    level: int
    other: int | None
    floor: float

    def stakes(
        self,
        row: NDArray[np.float32],
        best: NDArray[np.float32],
        items: NDArray[np.intp],
        margin: float,
    ) -> tuple[float, float]:
        """What the bets on values and on differences have made of 1, over ``items`` in order."""
        mine = items[np.isin(items, self.items)]
        values, before = self._values(row, mine), self._values(best, mine)
        known = self._values(best, self.items)
        # The sum that the candidate needs over all items of the domain to be as good.
        needed = (margin + self.floor) * len(self.items)
        return (
            _stake(values, needed, len(self.items), 1.0),
            _stake(
                values - before,
                needed - float(known.sum()),
                len(self.items),
                1.0 - float(known.min()),
            ),
        )

    def _values(self, row: NDArray[np.float32], items: NDArray[np.intp]) -> NDArray[np.float64]:
        """Wins of the level (less those of the other) at ``items``, ties in parts."""
        table = row[self.starts[items][:, None] + np.arange(len(self.part.levels))]
        won = table == table.max(axis=-1, keepdims=True)
        wins = won / won.sum(axis=-1, keepdims=True)
        own: NDArray[np.float64] = wins[:, self.level]
        return own if self.other is None else own - wins[:, self.other]


def _stake(values: NDArray[np.float64], needed: float, count: int, top: float) -> float:
    """What betting that ``count`` values sum to less than ``needed`` has made of 1.

    values: those seen so far, in random order, none above ``top``. Each bet looks only at values
    before its own, and risks no more than half of the stake.
    """
    start = needed / count  # a value seen beforehand, so that the first bet is none
    seen = np.arange(len(values))
    total = np.cumsum(values) - values
    fair = (needed - total) / (count - seen)  # the mean of what is left, were it just enough
    mean = (total + start) / (seen + 1)
    squares = np.cumsum(values * values) - values * values
    spread = (squares + start * start + 0.25) / (seen + 1) - mean * mean
    # The bet that grows fastest where the values have this mean and spread.
    gap = np.maximum(fair - mean, 0.0)
    bet = np.minimum(gap / (spread + gap * gap), _CAUTION / np.maximum(top - fair, _ROUNDING))
    # Where not even the largest values could make it any more.
    lost = (fair > top + _ROUNDING).any()
    left = count - len(values)
    if lost or needed - float(values.sum()) > left * top + _ROUNDING:
        return np.inf
    return float(np.prod(1 + bet * (fair - values)))
