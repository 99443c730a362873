"""Whole grids of the demo's small world, measured once and kept: the truth that searches replay.

    python -m bench.truths --cache DIRECTORY [--seeds 11 12 13] [--seconds 60]

A world is built from its seed (fresh: no seed below 100 but 1 to 5 was ever looked at, and the
recipe was calibrated on 101 to 108), and every point of SPACE is scored on the first ITEMS
validation items of each domain. Interrupted or out of ``--seconds`` it goes on where it was.
Afterwards the points with the largest margin for each combination are also scored on the test
items, which no search has seen.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from avops.demo import build
from avops.recipe import Source, Sources
from avops.score import Items, load_items
from avops.search import Evaluator, Setup
from avops.search.board import Board, Part, Want
from avops.search.space import Point, Space, parse_space
from avops.search.strategies.strategy import Problem, Told

RANGE = "-1.2:1:.2"
ITEMS = 16
SEEDS = (11, 12, 13)


@dataclass(frozen=True, eq=False)
class Grid:
    """One world's scores f32 [point, outputs] at every point of ``space``."""

    seed: int
    space: Space
    board: Board
    scores: NDArray[np.float32]

    @cached_property
    def wants(self) -> tuple[Want, ...]:
        """All combinations."""
        return self.board.combinations()

    @cached_property
    def judged(self) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
        """(hit, margin), [point, want]."""
        return self.board.judge(self.scores, self.wants)

    @cached_property
    def reachable(self) -> NDArray[np.bool_]:
        """[want]."""
        return self.judged[0].any(axis=0)

    @cached_property
    def winners(self) -> list[int]:
        """The rows with the three largest margins of each reachable combination."""
        hit, margin = self.judged
        best = np.argsort(-np.where(hit, margin, -np.inf), axis=0, kind="stable")[:3]
        return sorted({int(row) for row, want in zip(*np.nonzero(hit), strict=True)
                       if row in best[:, want]})  # fmt: skip

    def problem(self, seed: int) -> Problem:
        """The search for every combination with ``seed``."""
        return Problem(self.space, self.board, self.wants, seed)

    def told(self, points: Sequence[Point], pending: Sequence[Point] = ()) -> Told:
        """What a strategy knows after ``points``."""
        rows = [self.space.row(point) for point in points]
        return Told(tuple(points), self.scores[rows], tuple(pending))


def sources(directory: Path) -> Sources:
    """The vectors of the world in ``directory``."""
    named = {name: Source(name, str(directory / f"aligned/{name}.safetensors")) for name in NAMES}
    return Sources(named)


NAMES = ("med", "fin", "leg")


def space_of(directory: Path) -> Space:
    """Every λ of RANGE on every axis."""
    return parse_space([f"{name}:{RANGE}" for name in NAMES], sources(directory))


def load(seed: int, cache: Path) -> Grid:
    """The finished grid of ``seed``."""
    directory = cache / str(seed)
    space = space_of(directory)
    items = load_items(directory / "data/validation.jsonl").select(limit=ITEMS)
    scores = np.load(directory / "grid.npy")
    if np.isnan(scores).any():
        raise SystemExit(f"seed {seed}: {np.isnan(scores[:, 0]).sum()} points are missing")
    return Grid(seed, space, Board(Part.of(items)), scores)


def held_out(seed: int, cache: Path) -> tuple[NDArray[np.float32], Items]:
    """Scores of the winners' rows on the test items (others are nan), and these items."""
    directory = cache / str(seed)
    return np.load(directory / "held.npy"), load_items(directory / "data/test.jsonl")


def evaluator(directory: Path, data: str, limit: int | None) -> Evaluator:
    """Scores of the world in ``directory`` on the first ``limit`` items of split ``data``."""
    held = tuple(sources(directory).named.values())
    path = str(directory / f"data/{data}.jsonl")
    return Evaluator(
        Setup(str(directory / "base.safetensors"), held, path, device="cpu", limit=limit)
    )


def measure(directory: Path, name: str, data: str, limit: int | None, rows: Sequence[int],
            until: float) -> int:  # fmt: skip
    """Score ``rows`` of the grid into ``name``; returns how many are left at time ``until``."""
    space = space_of(directory)
    file = directory / f"{name}.npy"
    scores = np.load(file) if file.exists() else None
    if scores is not None:
        rows = [row for row in rows if np.isnan(scores[row, 0])]
    if not rows:
        return 0
    scorer = evaluator(directory, data, limit)
    if scores is None:
        scores = np.full((len(space), Board(Part.of(scorer.items)).outputs), np.nan, np.float32)
    done = 0
    for row in rows:
        scores[row] = scorer.evaluate(space.terms(space.points[row])).ravel()
        done += 1
        if time.monotonic() > until:
            break
    part = directory / f"{name}.part.npy"
    np.save(part, scores)
    os.replace(part, file)
    return len(rows) - done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--seconds", type=float, default=1e9)
    args = parser.parse_args()
    until = time.monotonic() + args.seconds
    for seed in args.seeds:
        directory = args.cache / str(seed)
        directory.mkdir(parents=True, exist_ok=True)
        build(directory, seed=seed)
        count = len(space_of(directory))
        left = measure(directory, "grid", "validation", ITEMS, range(count), until)
        if not left:
            winners = load(seed, args.cache).winners
            left = measure(directory, "held", "test", None, winners, until)
        print(f"seed {seed}: {left} left", flush=True)
        if time.monotonic() > until:
            return
    print("finished", flush=True)


if __name__ == "__main__":
    main()
