"""The strategies by name: the one table behind ``--strategy``."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from avops.errors import RecipeError

if TYPE_CHECKING:
    from avops.search.strategies.strategy import Problem, Strategy

DEFAULT = "active"


@dataclass(frozen=True)
class Entry:
    """help: one line. module, maker: what makes it, imported when it is used. given: options."""

    help: str
    module: str
    maker: str
    given: Mapping[str, Any] = field(default_factory=dict)


def _optuna(sampler: str, text: str) -> Entry:
    return Entry(f"Optuna's {text}", "samplers", "OptunaStrategy", {"sampler": sampler})


STRATEGIES: Mapping[str, Entry] = {
    "active": Entry(
        "models every item's scores, asks where combinations not found yet are likely; "
        "about a hundred points",
        "active",
        "Active",
    ),
    "grid": Entry("every point, coarse to fine", "grid", "Grid"),
    "grid:best": Entry(
        "every point, first what lies near hits and near changes", "grid", "Grid", {"order": "best"}
    ),
    "grid:lexicographic": Entry(
        "every point, the last axis fastest", "grid", "Grid", {"order": "lexicographic"}
    ),
    "refine": Entry(
        "the whole map: a coarse grid, then every point whose label is in doubt",
        "refine",
        "Refine",
    ),
    "optuna:tpe": _optuna("tpe", "tree-structured Parzen estimator, a study per combination"),
    "optuna:cmaes": _optuna("cmaes", "CMA-ES, a study per combination"),
    "optuna:nsga2": _optuna("nsga2", "NSGA-II, a margin per domain, a study per combination"),
    "optuna:gp": _optuna("gp", "Gaussian process on one margin, a study per combination; slow"),
    "optuna:random": _optuna("random", "random sampling"),
}


def make_strategy(name: str, problem: Problem, **options: Any) -> Strategy:
    """The strategy called ``name``; ``options`` go to it, over those of its table entry.

    Raises RecipeError for an unknown name, MissingExtraError where a package is missing.
    """
    if name not in STRATEGIES:
        near = difflib.get_close_matches(name, STRATEGIES, n=3, cutoff=0.5)
        known = ", ".join(STRATEGIES)
        hint = f"did you mean {' or '.join(near)}?" if near else f"expected one of {known}"
        raise RecipeError(f"--strategy {name}: no strategy has this name; {hint}")
    entry = STRATEGIES[name]
    module = importlib.import_module(f"avops.search.strategies.{entry.module}")
    strategy = getattr(module, entry.maker)(problem, **{**entry.given, **options})
    if entry.given:
        # Shown and stored as it was asked for.
        strategy.name = name
    return cast("Strategy", strategy)
