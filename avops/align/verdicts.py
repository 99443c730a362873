"""Verdicts: which level each answer is of, and what shares they make.

A judge may fail to place an answer; such answers count in ``n``, belong to no level, and are shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from avops.score import wilson
from avops.score.items import OVERALL

if TYPE_CHECKING:
    from avops.score import Items


@dataclass(frozen=True)
class Verdict:
    """A judge's word on one answer. level: None where it gave none.

    confidence: of the embedded judge, the level's probability. reply: an endpoint's own words.
    """

    level: str | None
    confidence: float | None = None
    reply: str | None = None


class Judge(Protocol):
    """Whoever classifies answers into ``levels``."""

    @property
    def levels(self) -> tuple[str, ...]:
        """The levels that it tells apart."""

    def judge(self, query: str, answer: str) -> Verdict:
        """The verdict on ``answer``. May be called from several threads."""

    def about(self) -> dict[str, Any]:
        """What a result needs to say about the judge, as JSON-able values."""


@runtime_checkable
class GroupJudge(Protocol):
    """A judge to whom many answers at once cost far less than one after the other."""

    def judge_all(self, answers: Sequence[str]) -> list[Verdict]:
        """The verdict on each of ``answers``: those that ``judge`` gives, whatever the queries."""


@dataclass(frozen=True)
class LevelShare:
    """A level's share of the answers in one domain, with its Wilson 95 % interval."""

    level: str
    count: int
    share: float
    low: float
    high: float


@dataclass(frozen=True)
class DomainShares:
    """One domain's ``n`` answers, of which ``unplaced`` belong to no level.

    agreement: share of the answers whose level also wins by log-prob, with its interval; None
    where log-probs were not measured.
    """

    domain: str
    n: int
    unplaced: int
    levels: tuple[LevelShare, ...]
    agreement: tuple[float, float, float] | None = None

    def __getitem__(self, level: str) -> LevelShare:
        return {share.level: share for share in self.levels}[level]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-able values."""
        table: dict[str, Any] = {
            "n": self.n,
            "unplaced": self.unplaced,
            "levels": {
                share.level: {
                    "count": share.count, "share": share.share, "low": share.low, "high": share.high
                }
                for share in self.levels
            },
        }  # fmt: skip
        if self.agreement is not None:
            share, low, high = self.agreement
            table["agreement"] = {"share": share, "low": low, "high": high}
        return table


def shares(
    items: Items,
    verdicts: Mapping[int, Verdict],
    winners: Sequence[str | None] | None = None,
) -> tuple[DomainShares, ...]:
    """Every domain in order of first appearance, then all under ``all``.

    verdicts: by item; items without one were not reached, and are left out. winners: the level that
    wins each item by log-prob, None for a tie, which agrees with nothing.
    """
    numbers = sorted(verdicts)
    found = []
    for domain in (*dict.fromkeys(items[i].domain for i in numbers), OVERALL):
        own = [i for i in numbers if domain in (OVERALL, items[i].domain)]
        if own:
            found.append(_of_domain(domain, own, items.levels, verdicts, winners))
    return tuple(found)


def _of_domain(
    domain: str,
    numbers: Sequence[int],
    levels: Sequence[str],
    verdicts: Mapping[int, Verdict],
    winners: Sequence[str | None] | None,
) -> DomainShares:
    n = len(numbers)
    placed = [verdicts[i].level for i in numbers]
    counts = {level: placed.count(level) for level in levels}
    agreement = None
    if winners is not None:
        same = sum(
            level is not None and level == winners[i]
            for i, level in zip(numbers, placed, strict=True)
        )
        agreement = (same / n, *wilson(same, n))
    return DomainShares(
        domain,
        n,
        n - sum(counts.values()),
        tuple(
            LevelShare(level, count, count / n, *wilson(count, n))
            for level, count in counts.items()
        ),
        agreement,
    )
