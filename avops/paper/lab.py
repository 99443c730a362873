"""The small world as the paper's laboratory: any recipe on any of its data sets, measured once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avops.recipe import Recipe, Source, Sources, Term, parse_sweep, parse_terms
from avops.score import instructed, load_items, summarise
from avops.search import Evaluator, Setup, sweep

if TYPE_CHECKING:
    from avops.demo import World
    from avops.score import Items, ScoreSummary
    from avops.search import Sweep

DOMAINS = ("med", "fin", "leg")
LEVELS = ("exp", "gen", "avd")


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    lams: range of the sweeps. grid: range of the search's axes. answers: judged ones per domain.
    targets: combinations for which a model is trained jointly, as a baseline. limit: items of each
    domain, None for all.
    """

    lams: str = "-1.5:1.5:.1"
    grid: str = "-1.2:1:.1"
    answers: int = 20
    targets: tuple[str, ...] = (
        "med=avd,fin=avd,leg=exp",
        "med=exp,fin=gen,leg=avd",
        "med=gen,fin=exp,leg=gen",
    )
    limit: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-able values."""
        return {**asdict(self), "targets": list(self.targets)}

    @property
    def key(self) -> str:
        """A short name of this plan: another plan's search is another study."""
        text = json.dumps(self.to_dict(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]


class Lab:
    """Evaluators of one world, made when they are first asked for.

    Data sets go by name: ``test``, ``validation``, ``safety``, ``helpful`` (their test pairs), and
    ``told LEVEL``: the test items with that level's instruction before every query.
    """

    def __init__(self, world: World, plan: Plan, scratch: Path) -> None:
        self.world, self.plan, self.scratch = world, plan, scratch
        self.named = {
            name: Source(name, str(path), "aligned") for name, path in world.aligned.items()
        }
        self.sources = Sources(self.named)
        self._evaluators: dict[tuple[str, int | None], Evaluator] = {}

    def evaluator(self, data: str, limit: int | None = None) -> Evaluator:
        """The evaluator of ``data``, of the first ``limit`` items of each domain."""
        limit = limit or self.plan.limit
        if (data, limit) not in self._evaluators:
            path, levels = self._data(data)
            setup = Setup(
                base=str(self.world.base),
                sources=tuple(self.named.values()),
                data=str(path),
                levels=levels,
                limit=limit,
                device="cpu",
            )
            self._evaluators[data, limit] = Evaluator(setup)
        return self._evaluators[data, limit]

    def terms(self, recipe: str) -> tuple[Term, ...]:
        """The terms of ``med:-1 fin:.5``; none for an empty text."""
        return parse_terms(recipe.split(), self.sources)

    def recipe(self, text: str) -> Recipe:
        """The recipe of ``text``."""
        return Recipe(str(self.world.base), self.terms(text))

    def summary(self, data: str, recipe: str = "") -> ScoreSummary:
        """Preference accuracy of ``recipe`` on ``data``."""
        evaluator = self.evaluator(data)
        return summarise(evaluator.evaluate(self.terms(recipe)), evaluator.items)

    def swept(self, data: str, name: str, fixed: str = "") -> Sweep:
        """The sweep of the vector ``name`` over the plan's range, with ``fixed`` terms."""
        specs = [*fixed.split(), f"{name}:{self.plan.lams}"]
        _, points = parse_sweep(specs, self.sources)
        return sweep(self.evaluator(data), points, name)

    @cached_property
    def train_items(self) -> Items:
        """The preference data."""
        return load_items(self.world.data["train"], levels=LEVELS)

    def _data(self, name: str) -> tuple[Path, tuple[str, ...] | None]:
        if name in self.world.data:
            return self.world.data[name], LEVELS
        if name in self.world.pairs:
            return self.world.pairs[name]["test"], None
        return self._told(name.removeprefix("told ")), LEVELS

    def _told(self, level: str) -> Path:
        """The test items with the instruction of ``level``, as a file of their own."""
        from avops.score import instructions_for

        items = load_items(self.world.data["test"], levels=LEVELS)
        text = instructions_for(LEVELS)[level]
        path = self.scratch / f"told-{level}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = (
            {"id": item.id, "domain": item.domain, "query": item.query, "responses": item.responses}
            for item in instructed(items, text)
        )
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        return path


def table_of(summary: ScoreSummary) -> dict[str, dict[str, Any]]:
    """Domain to its items, dominant level, and share and interval of each level."""
    return {
        part.domain: {
            "n": part.n,
            "dominant": part.dominant,
            **{one.level: [one.accuracy, one.low, one.high] for one in part.levels},
        }
        for part in summary.domains[:-1]
    }


def margin_of(own: Mapping[str, Any], level: str, levels: Sequence[str] = LEVELS) -> float:
    """By how much ``level`` is above the best of the others in one domain's table."""
    return float(own[level][0] - max(own[other][0] for other in levels if other != level))
