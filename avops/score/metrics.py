"""From S[item, level] to preference accuracy.

The level with the highest mean log-prob wins the item; k levels that tie for it win 1/k each, and
the tie is counted. Pref.Acc(level) is the share of items that the level wins. A level is dominant
where its share is above every other's and above 1/levels.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from avops.errors import DataError, NonFiniteError
from avops.score.intervals import wilson
from avops.score.items import OVERALL

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from avops.score.items import Items


@dataclass(frozen=True)
class LevelScore:
    """One level in one domain.

    wins: items won, ties in parts. accuracy: wins / n. low, high: Wilson 95 % interval.
    mean_logprob: mean over items of the mean log-prob per token, in nats.
    """

    level: str
    wins: float
    accuracy: float
    low: float
    high: float
    mean_logprob: float


@dataclass(frozen=True)
class DomainScore:
    """One domain's items: ``n`` of them, ``ties`` without a single winner."""

    domain: str
    n: int
    ties: int
    dominant: str | None
    levels: tuple[LevelScore, ...]

    def __getitem__(self, level: str) -> LevelScore:
        return {score.level: score for score in self.levels}[level]


@dataclass(frozen=True)
class ScoreSummary:
    """Every domain in order of first appearance, then all items pooled under ``all``."""

    levels: tuple[str, ...]
    domains: tuple[DomainScore, ...]

    def __getitem__(self, domain: str) -> DomainScore:
        return {score.domain: score for score in self.domains}[domain]

    @property
    def overall(self) -> DomainScore:
        """All items pooled."""
        return self.domains[-1]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-able values: levels, and domain -> n, ties, dominant, level -> numbers."""
        domains = {}
        for score in self.domains:
            levels = {part.level: asdict(part) for part in score.levels}
            for part in levels.values():
                del part["level"]
            domains[score.domain] = {
                "n": score.n,
                "ties": score.ties,
                "dominant": score.dominant,
                "levels": levels,
            }
        return {"levels": list(self.levels), "domains": domains}


def summarise(S: NDArray[np.floating[Any]], items: Items) -> ScoreSummary:  # noqa: N803
    """Preference accuracy of every domain and overall.

    Raises
    ------
    DataError
        S is not [item, level] of these items.
    NonFiniteError
        A score is NaN or infinite, naming item and level.

    """
    check_scores(S, items)
    parts = winners(S)
    of_domain = np.array([item.domain for item in items])
    domains = [
        _summarise(domain, S[of_domain == domain], parts[of_domain == domain], items.levels)
        for domain in items.domains
    ]
    domains.append(_summarise(OVERALL, S, parts, items.levels))
    return ScoreSummary(items.levels, tuple(domains))


def check_scores(S: NDArray[np.floating[Any]], items: Items) -> None:  # noqa: N803
    """Refuse scores of another shape, or that are not finite."""
    if S.shape != (len(items), len(items.levels)):
        raise DataError(
            f"{items.source}: scores of shape {list(S.shape)}, expected "
            f"[{len(items)} items, {len(items.levels)} levels]; score these items"
        )
    bad = np.argwhere(~np.isfinite(S))
    if bad.size:
        item, level = bad[0].tolist()
        raise NonFiniteError(
            f"{items.place(item, items.levels[level])}: the mean log-prob is {S[item, level]}, "
            f"expected a finite number ({len(bad)} such scores); check the model's weights"
        )


def winners(S: NDArray[np.floating[Any]]) -> NDArray[np.bool_]:  # noqa: N803
    """Which levels reach the item's highest score, [..., level]: one, or all that tie."""
    best: NDArray[np.bool_] = S.max(axis=-1, keepdims=True) == S
    return best


def _summarise(
    domain: str,
    S: NDArray[np.floating[Any]],  # noqa: N803
    parts: NDArray[np.bool_],
    levels: Sequence[str],
) -> DomainScore:
    n = len(S)
    tied = parts.sum(axis=1)
    # Fractions: thirds must add up to whole wins, and a share of exactly 1/levels is not above it.
    wins = [
        sum((Fraction(1, k) for k in tied[parts[:, column]].tolist()), Fraction(0))
        for column in range(len(levels))
    ]
    top = max(wins)
    dominant = wins.count(top) == 1 and top * len(levels) > n
    scores = []
    for column, level in enumerate(levels):
        won = float(wins[column])
        mean = math.fsum(S[:, column].tolist()) / n
        scores.append(LevelScore(level, won, won / n, *wilson(won, n), mean))
    return DomainScore(
        domain=domain,
        n=n,
        ties=int((tied > 1).sum()),
        dominant=levels[wins.index(top)] if dominant else None,
        levels=tuple(scores),
    )
