"""Two scores of the same items: what one recipe changed against another, and two levels in pairs.

A change is paired: an item counts only where the level's part of its win (1, 0, or 1/k in a tie of
k) differs between the two. Whether such items went up or down is tested by the exact sign test,
which without ties is McNemar's.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from avops.errors import DataError
from avops.score.intervals import sign_test, wilson
from avops.score.items import OVERALL
from avops.score.metrics import check_scores, summarise, winners

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from avops.score.items import Items
    from avops.score.metrics import DomainScore


@dataclass(frozen=True)
class Change:
    """One level in one domain, before and after.

    n: items. before, after: Pref.Acc. gained, lost: items of which the level won more, or less.
    p: of the sign test, two-sided, not adjusted for the number of tests.
    """

    domain: str
    level: str
    n: int
    before: float
    after: float
    gained: int
    lost: int
    p: float

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-able values."""
        return asdict(self)


@dataclass(frozen=True)
class Pairwise:
    """How often the first of two levels beats the second in one domain.

    wins: items, ties by halves. accuracy: wins / n, with its Wilson 95 % interval. margin: the
    mean of first − second.
    """

    domain: str
    n: int
    ties: int
    wins: float
    accuracy: float
    low: float
    high: float
    margin: float

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-able values."""
        return asdict(self)


def compare(
    before: NDArray[np.floating[Any]], after: NDArray[np.floating[Any]], items: Items
) -> tuple[Change, ...]:
    """The change of every level from S ``before`` to S ``after``, by domain and over all items.

    Both are [item, level] of these items. Raises DataError, NonFiniteError.
    """
    was, now = summarise(before, items), summarise(after, items)
    # 1/k is equal for equal k, in floating point too.
    more = np.sign(_parts(after) - _parts(before))
    return tuple(
        _change(was[domain], now[domain], level, more[rows, column])
        for domain, rows in _rows(items)
        for column, level in enumerate(items.levels)
    )


def pairwise(
    S: NDArray[np.floating[Any]],  # noqa: N803
    items: Items,
    first: str,
    second: str,
) -> tuple[Pairwise, ...]:
    """How often ``first`` beats ``second``, by domain and over all items.

    Other levels are left out. With two levels this is the Pref.Acc of the first. Raises DataError
    for a level that the items lack, NonFiniteError.
    """
    check_scores(S, items)
    for level in (first, second):
        if level not in items.levels or first == second:
            raise DataError(
                f"{items.source}: the levels {first!r} and {second!r}, expected two of "
                f"{', '.join(items.levels)}"
            )
    one, other = (S[:, items.levels.index(level)].astype(np.float64) for level in (first, second))
    return tuple(_pairwise(domain, one[rows], other[rows]) for domain, rows in _rows(items))


def _pairwise(domain: str, one: NDArray[np.float64], other: NDArray[np.float64]) -> Pairwise:
    n, ties = one.size, int((one == other).sum())
    wins = float(Fraction(int((one > other).sum())) + Fraction(ties, 2))
    margin = math.fsum((one - other).tolist()) / n
    return Pairwise(domain, n, ties, wins, wins / n, *wilson(wins, n), margin)


def _rows(items: Items) -> list[tuple[str, NDArray[np.bool_]]]:
    """Every domain, and which items it has; then all of them."""
    of_domain = np.array([item.domain for item in items])
    found = [(domain, of_domain == domain) for domain in items.domains]
    return [*found, (OVERALL, np.ones(len(items), np.bool_))]


def _parts(S: NDArray[np.floating[Any]]) -> NDArray[np.float64]:  # noqa: N803
    """Each level's part of the item's win: 1, 0, or 1/k."""
    best = winners(S)
    parts: NDArray[np.float64] = best / best.sum(axis=1, keepdims=True)
    return parts


def _change(was: DomainScore, now: DomainScore, level: str, more: NDArray[np.float64]) -> Change:
    gained, lost = int((more > 0).sum()), int((more < 0).sum())
    before, after = was[level].accuracy, now[level].accuracy
    p = sign_test(gained, lost)
    return Change(was.domain, level, was.n, before, after, gained, lost, p)
