"""Where does a strategy fail? Combinations found on synthetic worlds of many shapes.

    python -m bench.search_shapes [--shapes mono narrow …] [--strategies active random …]
                                  [--seeds 3] [--json FILE]

Every world is a closed formula of λ, so that its whole grid is known: log-probs of three levels in
two to four domains, 16 items each unless said. A run is one strategy with one seed on one world; it
ends when the strategy does, or after 160 points (random: the whole grid, in a random order).
Counted: measurements until every reachable combination was measured as a hit.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from avops.recipe import Source
from avops.search.board import Board, Part
from avops.search.space import Axis, Space
from avops.search.strategies.registry import make_strategy
from avops.search.strategies.strategy import Problem, Told
from bench.report import machine, table

BUDGET = 160
LEVELS, NAMES = ("exp", "gen", "avd"), ("med", "fin", "leg", "tax")
SHAPES = {
    "mono": "scores rise and fall with λ",
    "window": "a window for each level",
    "narrow": "narrow windows: combinations own about 1 % of the grid",
    "interact": "products of two λ move every domain",
    "wavy": "sines of λ",
    "cancel": "every vector moves every domain nearly alike",
    "stair": "λ arrives in steps of .4",
    "noisy": "0.15 nats of noise on every score",
    "wide": "scores fall with the fourth power of a wide λ",
    "cliff": "beyond ±.65 the model breaks down",
    "steep": "levels change places within .1 of λ",
    "few": "3 items in a domain",
    "two": "two domains",
    "four": "four domains",
}
BATCHES = {"active": 1}


@dataclass(frozen=True, eq=False)
class World:
    """problem and what is true of it: scores [point, output], hits [point, want]."""

    problem: Problem
    scores: np.ndarray
    hits: np.ndarray

    @property
    def reachable(self) -> int:
        """Combinations that some point hits."""
        return int(self.hits.any(axis=0).sum())


def world(shape: str, seed: int) -> World:
    """The world of ``shape`` that ``seed`` draws."""
    rng = np.random.default_rng([seed, sum(map(ord, shape))])
    domains = {"two": 2, "four": 4}.get(shape, 3)
    steps = {2: 10, 3: 5, 4: 3}[domains]
    items = 3 if shape == "few" else 16
    axis = [Axis(Source(n, n), -steps, steps, _step(steps)) for n in NAMES[:domains]]
    of_item = tuple(np.repeat(np.arange(domains), items).tolist())
    board = Board(Part(LEVELS, NAMES[:domains], of_item))
    problem = Problem(Space(tuple(axis)), board, board.combinations(), seed)
    scores = _formula(shape, rng, domains, items)(problem.space.lams)
    scores = scores.reshape(len(scores), -1).astype(np.float32)
    return World(problem, scores, board.judge(scores, problem.wants)[0])


def _step(steps: int) -> Any:
    from fractions import Fraction

    return Fraction(1, steps)


def _formula(
    shape: str, rng: np.random.Generator, domains: int, items: int
) -> Callable[[np.ndarray], np.ndarray]:
    """Scores [point, domain, item, level] of λ [point, axis]."""

    def draw(means: tuple[float, ...], by_domain: float, by_item: float) -> np.ndarray:
        whole = np.array(means) + rng.normal(0, by_domain, (domains, 1, 3))
        return whole + rng.normal(0, by_item, (domains, items, 3))

    mixing = np.eye(domains) + rng.normal(0.15, 0.12, (domains, domains)) * (1 - np.eye(domains))
    if shape == "cancel":
        mixing = 0.25 * np.eye(domains) + 0.75
    start = draw((-1.2, -1.1, -1.5), 0.08, 0.2)
    rise = draw((0.45, 0.0, -0.6), 0.06, 0.1)
    curve = draw((-0.2, -0.4, -0.1), 0.04, 0.0)
    centre = draw((0.6, 0.0, -0.6), 0.15, 0.1)
    products = rng.normal(0, 0.7, (domains, domains, domains))
    phase = rng.uniform(0, 6, domains)

    def scores(lams: np.ndarray) -> np.ndarray:
        moved = np.round(lams * 2.5) / 2.5 if shape == "stair" else lams
        u = moved @ mixing.T
        if shape == "interact":
            u = u + np.einsum("pi,pj,dij->pd", lams, lams, products)
        if shape == "wavy":
            u = u + 0.5 * np.sin(2.5 * u + phase)
        if shape == "wide":
            u = 3 * u
        u = u[:, :, None, None]
        if shape in ("window", "narrow"):
            width = 0.4 if shape == "window" else 0.22
            height = -1.5 + 0.2 * start - np.array([0.0, 0.0, 0.25]) * (shape == "narrow")
            return np.asarray(height + np.exp(-((u - centre) ** 2) / (2 * width**2)))
        if shape == "mono":
            return np.asarray(start + 1.3 * rise * u)
        if shape == "steep":
            return np.asarray(start + rise * np.tanh(12 * (u - 0.2)) + curve * np.tanh(12 * u))
        found = start + rise * u + curve * u * u
        if shape == "wide":
            found = found - 0.6 * (u / 2) ** 4
        if shape == "cliff":
            far = np.maximum(np.abs(lams).max(axis=1) - 0.65, 0)[:, None, None, None]
            found = found - 20 * far * (1 + 0.5 * np.sin(7 * u + 9 * start))
        if shape == "noisy":
            found = found + rng.normal(0, 0.15, found.shape)
        return np.asarray(found)

    return scores


def replay(found: World, strategy: str, seed: int) -> dict[str, Any]:
    """One run: combinations hit after each measurement, and when all were."""
    problem, began = found.problem, time.process_time()
    problem = Problem(problem.space, problem.board, problem.wants, seed)
    space = problem.space
    if strategy == "random":
        rows = np.random.default_rng(seed).permutation(len(space)).tolist()
    else:
        chooser, rows = make_strategy(strategy, problem), []
        while len(rows) < min(BUDGET, len(space)):
            points = tuple(space.points[row] for row in rows)
            told = Told(points, found.scores[rows])
            left = BUDGET - len(rows)
            asked = chooser.ask(told, min(BATCHES.get(strategy, 4), left)).points
            if not asked:
                break
            rows += [space.row(point) for point in asked]
    curve = np.logical_or.accumulate(found.hits[rows], axis=0).sum(axis=1)
    whole = found.reachable
    return {
        "strategy": strategy, "seed": seed, "measured": len(rows), "reachable": whole,
        "all_at": int((curve == whole).argmax()) + 1 if curve[-1] == whole else None,
        "at_60": float(curve[min(59, len(curve) - 1)] / whole),
        "at_110": float(curve[min(109, len(curve) - 1)] / whole),
        "cpu_seconds": time.process_time() - began,
    }  # fmt: skip


def show(runs: list[dict[str, Any]]) -> None:
    """A row per shape and strategy."""
    rows = []
    for shape, strategy in dict.fromkeys((run["shape"], run["strategy"]) for run in runs):
        mine = [r for r in runs if (r["shape"], r["strategy"]) == (shape, strategy)]
        at = sorted(run["all_at"] or float("inf") for run in mine)
        middle = statistics.median(at)
        rows.append([
            shape, strategy, f"{sum(x < float('inf') for x in at)} of {len(at)}",
            "–" if middle == float("inf") else f"{middle:g}",
            f"{statistics.mean(r['at_60'] for r in mine):.1%}",
            f"{statistics.mean(r['at_110'] for r in mine):.1%}",
            f"{statistics.median(r['measured'] for r in mine):g}",
        ])  # fmt: skip
    columns = ("shape", "strategy", "complete", "median", "at 60", "at 110", "measured")
    table("measurements until every reachable combination was hit", columns, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--strategies", nargs="+", default=["active", "grid:best", "random"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    runs = []
    for shape in args.shapes:
        for seed in range(args.seeds):
            found = world(shape, seed)
            runs += [
                {"shape": shape, **replay(found, strategy, seed)} for strategy in args.strategies
            ]
        show([run for run in runs if run["shape"] == shape])
    show(runs)
    if args.json:
        args.json.write_text(json.dumps({**machine(), "shapes": SHAPES, "runs": runs}) + "\n")


if __name__ == "__main__":
    main()
