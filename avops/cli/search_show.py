"""What `avops search` shows: the plan, how far it is, and what was found."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from avops.cli import output

if TYPE_CHECKING:
    from avops.cli.search_study import Asked
    from avops.search.budget import Clock, Progress
    from avops.search.store import Store
    from avops.search.strategies.strategy import Outlook, Told
    from avops.search.verdicts import Finding

_USUAL = {"active": 120}
"""Evaluations that a strategy usually asks for on three axes, measured on small worlds."""
_EVERY = 5.0  # seconds between two lines of progress


def usual(asked: Asked) -> int:
    """Evaluations to expect: the budget, what the strategy usually takes, or the whole grid."""
    size = len(asked.study.space)
    return min(asked.evaluations or size, _USUAL.get(asked.study.strategy, size), size)


def plan_data(asked: Asked, seconds: float) -> dict[str, Any]:
    """The plan, for machines."""
    study, sets = asked.study, asked.evaluator.sets
    size = len(study.space)
    told = len(asked.evaluator.instructions) if "prompting" in study.baselines else 0
    return {
        "run": str(asked.directory),
        "av": [str(axis) for axis in study.space.axes] + [str(t) for t in study.space.fixed],
        "points": size,
        "wanted": len(study.wants),
        "items": len(sets.search[0]),
        "guards": {
            guard.name: len(items)
            for guard, items in zip(sets.guards, sets.search[1:], strict=True)
        },
        "held_out": None if sets.holdout is None else len(sets.holdout[0]),
        "holdout": sets.rule,
        "strategy": study.strategy,
        "workers": asked.workers,
        "batch": study.batch,
        "tokens": asked.evaluator.tokens(),
        "seconds_each": seconds,
        "seconds_grid": seconds * size / asked.workers,
        "evaluations": usual(asked),
        "seconds": seconds * usual(asked) / asked.workers,
        "baseline_evaluations": told,
    }


def show_plan(asked: Asked, seconds: float, *, known: int = 0) -> None:
    """The plan, before it is carried out."""
    data = plan_data(asked, seconds)
    items = f"{data['items']} items"
    items += "".join(f", {count} of guard {name}" for name, count in data["guards"].items())
    held = "no items held out" if data["held_out"] is None else f"{data['held_out']} held out"
    output.status(
        f"grid: {data['points']:,} points of {' '.join(data['av'])}; {data['wanted']} wanted\n"
        f"items: {items}; {held} ({data['holdout']})\n"
        f"one evaluation: {output.seconds(seconds)}, {data['tokens']:,} tokens; the whole grid: "
        f"{output.seconds(data['seconds_grid'])} with {data['workers']} "
        f"{'worker' if data['workers'] == 1 else 'workers'}\n"
        f"{data['strategy']}: about {data['evaluations']:,} evaluations expected, "
        f"{output.seconds(data['seconds'])}; baselines: {data['baseline_evaluations']} more\n"
        f"run: {asked.directory}" + (f" ({known:,} points are in it)" if known else "")
    )


class Watch:
    """Progress of a search: a bar on a terminal, a line every few seconds else.

    usual: evaluations that are expected, where there is no budget.
    """

    def __init__(self, usual: int, *, quiet: bool) -> None:
        self._usual, self._quiet = usual, quiet
        self._bar: AbstractContextManager[output.Progress] | None = None
        self._update: output.Progress | None = None
        self._found = -1
        self._last = time.monotonic()

    def progress(self, now: Progress) -> None:
        """See runner.Watch."""
        if self._quiet:
            return
        total = max(now.budget or self._usual, now.measured)
        if not sys.stderr.isatty():
            self._line(now, total)
            return
        if now.found != self._found:
            # A bar's title stays as it began.
            self.close()
            self._found = now.found
            title = f"found {now.found} of {now.wanted}"
            self._bar = output.progress(title, unit="points")
            self._update = self._bar.__enter__()
        assert self._update is not None
        self._update(now.measured, total)

    def note(self, text: str) -> None:
        """See runner.Watch."""
        self.close()
        self._found = -1
        output.note(text)

    def after(self, count: int) -> None:
        """Winners and baselines are measured now."""
        self.close()
        if count and not self._quiet:
            output.status(f"measuring winners and baselines: {count} evaluations")

    def close(self) -> None:
        """No more progress is shown."""
        if self._bar is not None:
            self._bar.__exit__(None, None, None)
        self._bar = self._update = None

    def _line(self, now: Progress, total: int) -> None:
        if time.monotonic() - self._last < _EVERY:
            return
        self._last = time.monotonic()
        left = output.seconds((total - now.measured) * now.seconds)
        output.status(
            f"{now.measured:,} points, found {now.found} of {now.wanted}, about {left} left"
        )


@dataclass(frozen=True, eq=False)
class Found:
    """What a search found, and where its time went."""

    asked: Asked
    findings: tuple[Finding, ...]
    settings: Mapping[tuple[int, ...], Mapping[str, Any]]
    measured: int
    why: str
    clock: Clock
    fit: Any
    out: int = 0

    @classmethod
    def of(
        cls,
        asked: Asked,
        store: Store,
        told: Told,
        outlook: Outlook | None,
        *,
        why: str,
        exhausted: bool,
        clock: Clock,
    ) -> Found:
        """Judge what ``store`` holds."""
        from avops.search.confirm import WINNER
        from avops.search.study import HOLDOUT
        from avops.search.verdicts import HoldOut, findings

        study, held = asked.study, None
        if study.holdout is not None:
            rows = {result.point: result.scores for result in store.results(HOLDOUT)}
            held = HoldOut(study.holdout, rows)
        # Chances of a model that does not fit are no chances.
        believed = outlook if outlook is not None and outlook.fit.trusted else None
        found = findings(study.problem, told, outlook=believed, holdout=held, exhausted=exhausted)
        settings = {tuple(n.value["point"]): n.value for n in store.notes(WINNER)}
        fit = None if outlook is None else outlook.fit
        return cls(asked, found, settings, len(told.points), why, clock, fit, len(told.out))

    def to_dict(self) -> dict[str, Any]:
        """One JSON result."""
        space = self.asked.study.space
        rows = []
        for finding in self.findings:
            row = finding.to_dict()
            if finding.point is not None:
                row["av"] = [str(term) for term in space.terms(finding.point)]
                own = self.settings.get(finding.point, {})
                row["effective"] = own.get("effective")
                row["unchanged"] = own.get("unchanged")
            rows.append(row)
        clock = self.clock
        return {
            "run": str(self.asked.directory),
            "points": len(space),
            "measured": self.measured,
            "out": self.out,
            "reached": sum(finding.hit for finding in self.findings),
            "confirmed": sum(finding.verdict == "confirmed" for finding in self.findings),
            "wanted": len(self.findings),
            "why": self.why,
            "findings": rows,
            "seconds": clock.wall,
            "planner_seconds": clock.planner,
            "planner_waited": clock.waited,
            "scoring_share": clock.scoring_share(self.asked.workers),
        }

    def show(self) -> None:
        """The table of findings, and the headline."""
        space, part = self.asked.study.space, self.asked.study.board.main
        held = self.asked.study.holdout is not None
        columns = [*part.domains, "verdict", "λ", "margin", *(["held out"] if held else [])]
        columns += ["λ as saved", "unchanged", "chance left"]
        rows = []
        for finding in self.findings:
            own = self.settings.get(finding.point or (), {})
            cells = [finding.want.level(domain) or "any" for domain in part.domains]
            cells += [finding.verdict, space.name(finding.point) if finding.point else "-"]
            cells += [_signed(finding.margin)]
            cells += [_signed(finding.held_margin)] if held else []
            cells += [_effective(own.get("effective")), _share(own.get("unchanged"))]
            cells += [
                "-"
                if finding.chance is None
                else ("<0.1%" if finding.chance < 0.001 else f"{finding.chance:.1%}")
            ]
            rows.append(cells)
        output.table("", columns, rows, left=len(part.domains) + 2)
        data = self.to_dict()
        confirmed = f", {data['confirmed']} confirmed on held-out items" if held else ""
        output.line(
            f"\n{data['reached']} of {data['wanted']} combinations reached{confirmed}; "
            f"{data['measured']:,} of {data['points']:,} points measured in {self.asked.directory}"
        )
        if self.out:
            output.line(f"{self.out:,} more were put out of the race on some of their items")
        output.line(f"ended: {self.why}")
        output.status(f"more: avops report {self.asked.directory}")


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.2f}"


def _share(value: float | None) -> str:
    return "-" if value is None else output.share(value)


def _effective(lams: Mapping[str, float | None] | None) -> str:
    if not lams:
        return "-"
    known = [f"{name}:{lam:.3g}" for name, lam in lams.items() if lam is not None]
    return " ".join(known) or "base"


def _chance(chance: float | None) -> str:
    """Never 0 for what is not impossible."""
    if chance is None:
        return "-"
    return "<0.1%" if chance < 0.001 else f"{chance:.1%}"
