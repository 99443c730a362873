"""Synthetic studies whose reachable combinations are known, for any number of alignment vectors.

Log-probs of the levels follow what real sweeps show: along a domain's own λ the first level rises,
the middle one has a window, the last one rises for negative λ; other vectors move a domain a
little; items differ. Every value is a closed formula of λ, so that a whole grid costs little.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avops.recipe import Source
from avops.search.board import Board, Guard, Part, Want
from avops.search.space import Axis, Point, Space
from avops.search.strategies.strategy import Problem, Strategy, Told

Formula = Callable[[NDArray[np.float64]], NDArray[np.float32]]
LEVELS = ("exp", "gen", "avd")
NAMES = ("med", "fin", "leg", "tax", "vet", "law", "art", "geo")
_BLOCK = 4096


@dataclass(frozen=True, eq=False)
class Truth:
    """problem: what is searched. formula: scores f32 [point, outputs] of λ [point, axis]."""

    problem: Problem
    formula: Formula

    def evaluate(self, point: Point) -> NDArray[np.float32]:
        """The row of ``point``."""
        return self.formula(self.problem.space.lams_of([point]))[0]

    def told(self, points: tuple[Point, ...], pending: tuple[Point, ...] = ()) -> Told:
        """What a strategy is told when ``points`` were measured."""
        if not points:
            return Told((), Told.nothing(self.problem.board).scores, pending)
        return Told(points, np.stack([self.evaluate(point) for point in points]), pending)

    @cached_property
    def hits(self) -> NDArray[np.bool_]:
        """[point of the space, want]."""
        lams, problem = self.problem.space.lams, self.problem
        blocks = [self.formula(lams[i : i + _BLOCK]) for i in range(0, len(lams), _BLOCK)]
        return np.concatenate([problem.board.judge(block, problem.wants)[0] for block in blocks])

    @cached_property
    def reachable(self) -> set[Want]:
        """The wants that some point of the space hits."""
        return {w for w, hit in zip(self.problem.wants, self.hits.any(axis=0), strict=True) if hit}

    def found(self, points: tuple[Point, ...]) -> set[Want]:
        """The wants that ``points`` hit."""
        hit, _ = self.problem.board.judge(self.told(points).scores, self.problem.wants)
        return {w for w, one in zip(self.problem.wants, hit.any(axis=0), strict=True) if one}


def play(
    truth: Truth, strategy: Strategy, budget: int, workers: int = 1, *, all_found: bool = False
) -> tuple[Point, ...]:
    """The points that ``strategy`` measures, in order, until it finishes or ``budget`` is spent.

    workers: points asked for at a time, each batch measured before the next. all_found: end when
    every reachable combination was found.
    """
    points: tuple[Point, ...] = ()
    while len(points) < budget:
        asked = strategy.ask(truth.told(points), min(workers, budget - len(points))).points
        if not asked:
            break
        points += asked
        if all_found and truth.found(points) == truth.reachable:
            break
    return points


def space_of(count: int, *, steps: int = 10, low: int | None = None) -> Space:
    """``count`` axes from -1 (or ``low`` steps) to 1 in ``steps`` steps for 1."""
    low = -steps if low is None else low
    return Space(tuple(Axis(Source(n, n), low, steps, Fraction(1, steps)) for n in NAMES[:count]))


def board_of(count: int, items: int, guards: tuple[Guard, ...] = ()) -> Board:
    """``count`` domains of ``items`` items each."""
    of_item = tuple(np.repeat(np.arange(count), items).tolist())
    return Board(Part(LEVELS, NAMES[:count], of_item), guards)


def truth(
    count: int,
    *,
    seed: int = 0,
    items: int = 20,
    steps: int = 10,
    rough: float = 0.0,
    guard: bool = False,
) -> Truth:
    """A study of ``count`` vectors and domains with every combination wanted.

    rough: nats of noise per score that has nothing to do with λ's neighbourhood. guard: with ten
    preference pairs of which ``chosen`` must win .6, lost as Σ λ falls.
    """
    rng = np.random.default_rng([seed, count, items])
    guards = (_guard(),) if guard else ()
    board = board_of(count, items, guards)
    formula = _levels(rng, count, items)
    if guard:
        formula = _guarded(rng, formula, len(guards[0].part.of_item))
    if rough:
        formula = _roughened(formula, rough, seed)
    space = space_of(count, steps=steps)
    return Truth(Problem(space, board, board.combinations(), seed), formula)


def noise(count: int, *, seed: int = 0, items: int = 20, steps: int = 5) -> Truth:
    """A study in which no point says anything of its neighbours: what no model can fit."""
    board = board_of(count, items)

    def flat(lams: NDArray[np.float64]) -> NDArray[np.float32]:
        return np.full((len(lams), board.outputs), -2.0, np.float32)

    problem = Problem(space_of(count, steps=steps), board, board.combinations(), seed)
    return Truth(problem, _roughened(flat, 0.5, seed, shared=items))


def _levels(rng: np.random.Generator, count: int, items: int) -> Formula:
    """exp rises with u, gen has a window, avd rises with −u; u: mostly a domain's own λ."""
    others = rng.normal(0.18, 0.12, (count, count)) * (1 - np.eye(count))
    mixing = np.eye(count) + others / max(1, count - 1) ** 0.5
    bend = rng.normal(0, 0.12, (count, count))
    start = np.array([-1.15, -1.1, -1.6]) + rng.normal(0, 0.08, (count, 1, 3))
    rise = np.array([0.45, 0.0, -0.75]) + rng.normal(0, 0.06, (count, 1, 3))
    curve = np.array([-0.25, -0.45, -0.12]) + rng.normal(0, 0.04, (count, 1, 3))
    start = start + rng.normal(0, 0.2, (count, items, 3))
    rise = rise + rng.normal(0, 0.1, (count, items, 3))
    away = rng.normal(0, 0.07, (count, items, 3, count))

    def formula(lams: NDArray[np.float64]) -> NDArray[np.float32]:
        u = lams @ mixing.T + np.tanh(lams) ** 2 @ bend.T
        u = u[:, :, None, None]
        scores = start + rise * u + curve * u * u + np.einsum("pk,dilk->pdil", np.sin(lams), away)
        return scores.reshape(len(lams), -1).astype(np.float32)

    return formula


def _guard() -> Guard:
    part = Part(("chosen", "rejected"), ("safety",), (0,) * 10)
    return Guard("safety", part, "chosen", Fraction(3, 5))


def _guarded(rng: np.random.Generator, formula: Formula, pairs: int) -> Formula:
    gap = rng.normal(0.5, 0.4, pairs)

    def guarded(lams: NDArray[np.float64]) -> NDArray[np.float32]:
        total = lams.sum(axis=1, keepdims=True)
        chosen = -2 + gap + 0.35 * total - 0.05 * total**2
        both = np.stack([chosen, np.full_like(chosen, -2.0)], axis=-1).reshape(len(lams), -1)
        return np.concatenate([formula(lams), both.astype(np.float32)], axis=1)

    return guarded


def _roughened(formula: Formula, nats: float, seed: int, shared: int = 1) -> Formula:
    """With hashed noise per point and score; ``shared`` items in turn get the same."""

    def roughened(lams: NDArray[np.float64]) -> NDArray[np.float32]:
        scores = formula(lams)
        found = []
        for row, lam in zip(scores, np.rint(lams * 1000).astype(np.int64), strict=True):
            rng: Any = np.random.default_rng([seed, *(lam + 10**6).tolist()])
            count = len(row) // 3 // shared
            noise = np.repeat(rng.normal(0, nats, (count, 1, 3)), shared, axis=1).ravel()
            extra = np.zeros(len(row) - len(noise))
            found.append(row + np.concatenate([noise, extra]).astype(np.float32))
        return np.stack(found)

    return roughened
