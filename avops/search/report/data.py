"""Everything the report shows, as plain data: one object for the page, the terminal and --json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from avops.score.intervals import wilson
from avops.search.space import renamed, short_names
from avops.search.verdicts import Share

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from avops.search.board import Part, Want
    from avops.search.report.facts import Facts, Saved
    from avops.search.space import Point
    from avops.search.strategies.strategy import Outlook
    from avops.search.verdicts import Finding


@dataclass(frozen=True)
class Row:
    """One combination.

    number: its place among all combinations, as figures show it; None where some domain may have
    any level. shown: the winner, or without one the measured point that came closest; terms: it as
    words of ``--av``; brief: the same by the vectors' short names. at: the number of the evaluation
    that hit it first. shares, held: of the wanted levels and of the guards, on the search and the
    held-out items.
    """

    number: int | None
    finding: Finding
    shown: Point | None
    terms: tuple[str, ...]
    brief: tuple[str, ...]
    at: int | None
    shares: tuple[Share, ...]
    held: tuple[Share, ...]
    saved: Saved | None

    @property
    def hit(self) -> bool:
        """Whether a measured point hits it."""
        return self.finding.hit

    @property
    def verdict(self) -> str:
        """The verdict's word."""
        return self.finding.verdict

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-able values."""
        return {
            "number": self.number,
            **self.finding.to_dict(),
            "levels": dict(self.finding.want.levels),
            "shown": None if self.shown is None else list(self.shown),
            "av": list(self.terms),
            "found_at": self.at,
            "effective_lam": None if self.saved is None else dict(self.saved.effective),
            "unchanged_share": None if self.saved is None else self.saved.unchanged,
        }


@dataclass(frozen=True)
class Baseline:
    """Shares of all levels in all domains of something that needs no search.

    kind: ``base``, ``prompting`` or ``sweep``.
    """

    name: str
    kind: str
    dominant: Mapping[str, str | None]
    shares: tuple[Share, ...]


@dataclass(frozen=True)
class Headline:
    """The run in numbers. seconds: of work."""

    wanted: int
    reached: int
    confirmed: int
    measured: int
    points: int
    seconds: float

    @property
    def measured_share(self) -> float:
        """Measured share of the grid."""
        return self.measured / self.points


class Report:
    """A run's facts, and what follows from them. Nothing inferred counts as reached."""

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self.study = facts.study
        self.names = short_names(facts.study.space)
        self.space = renamed(facts.study.space, self.names)
        self.board = facts.study.board
        self.part = self.board.main

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """One row per wanted combination, in the order they were wanted."""
        return tuple(self._row(place) for place in range(len(self.facts.findings)))

    @cached_property
    def headline(self) -> Headline:
        """The run in numbers."""
        return Headline(
            wanted=len(self.rows),
            reached=sum(row.hit for row in self.rows),
            confirmed=sum(row.verdict == "confirmed" for row in self.rows),
            measured=len(self.facts.told.points),
            points=len(self.space),
            seconds=self.facts.arrived[-1] if self.facts.arrived else 0.0,
        )

    @cached_property
    def discovery(self) -> tuple[int, ...]:
        """How many wanted combinations were hit after each evaluation."""
        if not self.facts.told.points:
            return ()
        return tuple(np.logical_or.accumulate(self._hits, axis=0).sum(axis=1).tolist())

    @property
    def inferred(self) -> Outlook | None:
        """What a model says of points that were not measured, if it may be believed."""
        model = self.facts.model
        return model.outlook if model is not None and model.fit.trusted else None

    @cached_property
    def labels(self) -> NDArray[np.int16]:
        """The dominant level of each measured point's domains, [point, domain], -1 for none."""
        return self.board.labels(self.facts.told.scores)

    @cached_property
    def places(self) -> dict[Point, int]:
        """Measured point to its place in the order of arrival."""
        return {point: place for place, point in enumerate(self.facts.told.points)}

    @cached_property
    def origin(self) -> Point:
        """The point nearest to λ = 0."""
        return self.space.nearest([0.0] * len(self.space.axes))

    @cached_property
    def baselines(self) -> tuple[Baseline, ...]:
        """λ = 0, prompting, and every point at which one alignment vector alone is at work."""
        found = []
        rows = dict(self.facts.baselines)
        if self.origin in self.places:
            bare = not any(self.origin) and not self.space.fixed
            name = "λ = 0" if bare else self.space.name(self.origin)
            found.append(self._baseline(name, "base", self._scores(self.origin)))
        if "base" in rows:
            found.append(self._baseline("base", "base", rows.pop("base")))
        found += [self._baseline(name, "prompting", row) for name, row in rows.items()]
        for number, axis in enumerate(self.space.axes):
            for point in self.on_axis(number):
                if point != self.origin:
                    fixed = "".join(f", {term}" for term in self.space.fixed)
                    name = f"{axis.name} {axis.text(point[number])}{fixed}"
                    found.append(self._baseline(name, "sweep", self._scores(point)))
        return tuple(found)

    def on_axis(self, axis: int) -> list[Point]:
        """Measured points that differ from the origin on ``axis`` alone, by λ."""
        here = self.origin
        return sorted(
            point
            for point in self.facts.told.points
            if all(point[k] == here[k] for k in range(len(here)) if k != axis)
        )

    def shares_at(self, point: Point) -> tuple[Share, ...]:
        """Measured shares of all levels in all domains at ``point``."""
        return _shares(self.part, self._scores(point)[self.board.spans[0]])

    def number(self, want: Want) -> int | None:
        """The place of ``want`` among all combinations, from 1; None if any level will do."""
        wanted = [want.level(domain) for domain in self.part.domains]
        if None in wanted:
            return None
        return self.code([self.part.levels.index(str(level)) for level in wanted]) + 1

    def code(self, levels: Sequence[int]) -> int:
        """A level (by number) per domain as one number, the last domain fastest."""
        found = 0
        for level in levels:
            found = found * len(self.part.levels) + int(level)
        return found

    def decoded(self, code: int) -> tuple[int, ...]:
        """The levels of ``code``."""
        found = []
        for _ in self.part.domains:
            code, level = divmod(code, len(self.part.levels))
            found.append(level)
        return tuple(reversed(found))

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON-able values."""
        facts, head = self.facts, self.headline
        return {
            "run": facts.name,
            "ended": facts.ended,
            "strategy": self.study.strategy,
            "seed": self.study.seed,
            **asdict(head),
            "measured_share": head.measured_share,
            "axes": [str(axis) for axis in self.study.space.axes],
            "fixed": [str(term) for term in self.study.space.fixed],
            "levels": list(self.part.levels),
            "domains": list(self.part.domains),
            "combinations": [row.to_dict() for row in self.rows],
            "discovery": list(self.discovery),
            "baselines": [asdict(baseline) for baseline in self.baselines],
            "fit": None if facts.model is None else asdict(facts.model.fit),
            "identity": {"parts": dict(facts.identity.parts), "shown": dict(facts.identity.shown)},
            "command": facts.command,
            "version": facts.version,
            "notes": list(facts.notes),
        }

    @cached_property
    def _hits(self) -> NDArray[np.bool_]:
        return self.board.judge(self.facts.told.scores, self.study.wants)[0]

    def _scores(self, point: Point) -> NDArray[np.float32]:
        row: NDArray[np.float32] = self.facts.told.scores[self.places[point]]
        return row

    def _row(self, place: int) -> Row:
        finding = self.facts.findings[place]
        shown = finding.point if finding.hit else finding.closest
        shares: Sequence[Share] = finding.shares
        if not finding.hit and shown is not None:
            shares = self.shares_at(shown)
        kept = {*finding.want.levels, *((g.name, g.level) for g in self.board.guards)}
        hits = self._hits[:, place]
        return Row(
            number=self.number(finding.want),
            finding=finding,
            shown=shown,
            terms=() if shown is None else tuple(map(str, self.study.space.terms(shown))),
            brief=() if shown is None else tuple(map(str, self.space.terms(shown))),
            at=int(hits.argmax()) + 1 if hits.any() else None,
            shares=tuple(s for s in shares if (s.domain, s.level) in kept),
            held=tuple(s for s in finding.held_out if (s.domain, s.level) in kept),
            saved=None if finding.point is None else self._saved(finding.point),
        )

    def _saved(self, point: Point) -> Saved | None:
        """What rounding left of a winner, by the vectors' short names."""
        found = self.facts.saved.get(point)
        if found is None:
            return None
        effective = {self.names.get(name, name): lam for name, lam in found.effective.items()}
        return replace(found, effective=effective)

    def _baseline(self, name: str, kind: str, row: NDArray[np.float32]) -> Baseline:
        best = self.board.labels(row[None])[0].tolist()
        dominant = {
            domain: None if level < 0 else self.part.levels[level]
            for domain, level in zip(self.part.domains, best, strict=True)
        }
        return Baseline(name, kind, dominant, _shares(self.part, row[self.board.spans[0]]))


def _shares(part: Part, row: NDArray[np.float32]) -> tuple[Share, ...]:
    wins = part.wins(row[None])[0] / part.unit
    found = []
    for d, domain in enumerate(part.domains):
        n = int(part.counts[d])
        for k, level in enumerate(part.levels):
            won = float(wins[d, k])
            found.append(Share(domain, level, won, n, won / n, *wilson(won, n)))
    return tuple(found)
