"""A made-up run: scores known at every λ, some of them measured and kept in a run directory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from avops.recipe import Source, Sources
from avops.search.board import Board, Part, Want
from avops.search.confirm import WINNER
from avops.search.identity import Identity
from avops.search.space import Point, Space, parse_space
from avops.search.store import Result, Store
from avops.search.strategies.strategy import Told
from avops.search.study import BASELINE, HOLDOUT, SEARCH, Study
from avops.search.verdicts import picks

LEVELS = ("exp", "gen", "avd")
NAMES = ("med", "fin", "leg")


@dataclass(frozen=True, eq=False)
class World:
    """Scores at any λ: per item and level a bent line in every λ, steepest in its own domain."""

    space: Space
    part: Part
    origin: np.ndarray
    slopes: np.ndarray
    bends: np.ndarray

    @classmethod
    def of(cls, space: Space, domains: tuple[str, ...] = NAMES, items: int = 20, seed: int = 7):
        rng = np.random.default_rng(seed)
        part = Part(LEVELS, domains, tuple(np.repeat(range(len(domains)), items).tolist()))
        n, axes = len(part.of_item), len(space.axes)
        own = np.where(np.arange(axes) == np.asarray(part.of_item)[:, None], 1.0, 0.22)
        lean = np.array([0.9, 0.15, -0.9])  # the AVs make exp likelier, and avd less likely
        slopes = own[:, :, None] * lean * rng.normal(1.0, 0.25, (n, axes, 1))
        slopes = slopes + 0.12 * rng.normal(size=(n, axes, 3))
        bends = -0.28 * own[:, :, None] * np.array([1.0, 0.05, 1.0])
        bends = bends * rng.uniform(0.6, 1.4, (n, 1, 1))
        origin = -2.6 + 0.30 * rng.normal(size=(n, 3)) + np.array([-0.02, 0.05, 0.0])
        return cls(space, part, origin, slopes, bends)

    def scores(self, points: list[Point]) -> np.ndarray:
        lams = self.space.lams_of(points)
        found = self.origin + np.einsum("pa,ial->pil", lams, self.slopes)
        found = found + np.einsum("pa,ial->pil", np.abs(lams) ** 1.5, self.bends)
        for row, point in zip(found, points, strict=True):
            # What rounding does: small, without a pattern, the same at every visit.
            row += 0.05 * np.random.default_rng(abs(hash(point))).normal(size=row.shape)
        return found.reshape(len(lams), -1).astype(np.float32)


def space_of(names: tuple[str, ...] = NAMES, given: str = "-1:1:.1", **more: Any) -> Space:
    sources = Sources({n: Source(n, f"avs/{n}.safetensors") for n in names}, lambda _: False)
    return parse_space([f"{name}:{given}" for name in names], sources, **more)


def some_points(space: Space, count: int, seed: int = 1) -> list[Point]:
    """The origin, a sweep of each axis, and random points."""
    rng = np.random.default_rng(seed)
    axes = len(space.axes)
    points: dict[Point, None] = {(0,) * axes: None}
    for axis in range(axes):
        for part in (-1, -0.7, -0.4, -0.2, 0.2, 0.4, 0.7, 1):
            place = round(part * space.axes[axis].high)
            points[tuple(place if k == axis else 0 for k in range(axes))] = None
    points = {point: None for point in list(points)[:count] if point in space}
    while len(points) < min(count, len(space)):
        points[space.points[rng.integers(len(space))]] = None
    return list(points)


def identity(parts: dict[str, str] | None = None) -> Identity:
    own = {
        "base": "3f" * 32,
        **{f"av {name}": "5c" * 32 for name in NAMES},
        "λ": "med in steps of 0.1, fin in steps of 0.1, leg in steps of 0.1",
        "levels": ", ".join(LEVELS),
        "items": "9a" * 32,
        "dtype": "f32",
        "rounding": "nearest to bf16",
        "norm": "token",
    }
    shown = {"base": "base.safetensors", "items": "items.jsonl, 40 of med, 40 of fin, 40 of leg"}
    shown |= {f"av {name}": f"avs/{name}.safetensors" for name in NAMES}
    return Identity(own if parts is None else parts, shown)


def make_run(
    directory: Path,
    count: int = 100,
    *,
    names: tuple[str, ...] = NAMES,
    domains: tuple[str, ...] | None = None,
    given: str = "-1:1:.1",
    wants: tuple[Want, ...] | None = None,
    holdout: bool = True,
    items: int = 20,
    who: Identity | None = None,
    end: dict[str, Any] | None = None,
    bound: str | None = None,
) -> World:
    """A run directory with ``count`` measured points. Returns the truth behind it."""
    space = space_of(names, given, bound=bound)
    world = World.of(space, domains or names, items, 7)
    other = World.of(space, domains or names, items, 8)
    board, held = Board(world.part), Board(other.part) if holdout else None
    wanted = wants or board.combinations()
    study = Study(space, board, wanted, held, baselines=("base", "prompting"))
    with Store.open(directory, study, who or identity()) as store:
        points = some_points(space, count)
        scores = world.scores(points) if points else np.empty((0, board.outputs), np.float32)
        for number, (point, row) in enumerate(zip(points, scores, strict=True)):
            store.add(Result(point, SEARCH, row, 3.5, f"{number % 2} cpu", "first points"))
        told = Told(tuple(points), scores) if points else Told.nothing(board)
        for point in dict.fromkeys(picks(study.problem, told).values()):
            lams = space.lams_of([point])[0]
            effective = {n: float(0.93 * lam) for n, lam in zip(names, lams, strict=True)}
            store.note(WINNER, point=list(point), effective=effective, unchanged=0.41)
            if holdout:
                store.add(Result(point, HOLDOUT, other.scores([point])[0], 3.5, "0 cpu", "winner"))
        for place, level in enumerate(LEVELS if points else ()):
            told_so = 0.4 * np.tile(np.eye(3)[place], len(world.part.of_item))
            row = (scores[0] + told_so).astype(np.float32)
            store.add(Result(points[0], f"{BASELINE}told {level}", row, 3.5, "0 cpu", "baseline"))
        if end is not None:
            store.note("ended", **end)
    return world
