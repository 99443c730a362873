"""The whole map at a part of its cost: a coarse grid, then every point whose label is in doubt.

    coarse grid + audit → [ model → points in doubt, likely hits, larger margins ]* → finished

The coarse grid is exact, and so is everything measured. Between measured points the model of every
score (``gp``, ``chances``) says which labels are likely and how likely; all labels in more doubt
than a bound are measured, and the model is made anew, until none is left. The model is not taken on
trust: the audit is a random sample of the space, measured at the start, and each of its points is
predicted from all others (leave-one-out). One half of it sets the bound: below every doubt with
which a point of that half was predicted wrongly. The other half then says how many of the labels
predicted with a doubt within the bound are wrong: the measured error of those that stay inferred.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from avops.errors import RecipeError
from avops.score import wilson
from avops.search.strategies.chances import Chances
from avops.search.strategies.design import unit
from avops.search.strategies.gp import Process
from avops.search.strategies.grid import coarse_order, point_fineness
from avops.search.strategies.strategy import Ask, Fit, Outlook, Problem, Told

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from avops.search.board import Want
    from avops.search.space import Point

COARSE = 0.1
"""The coarse grid is the finest with at most this share of the points (without one: the second)."""
AUDIT = 0.03
LEAST_AUDIT, MOST_AUDIT = 16, 600
"""The audit's share of the points, and bounds of its size (of a small space at most COARSE)."""
TRUSTED = 0.05
"""With more wrong points than this in the audit, the inferred labels are not to be trusted."""
DOUBT = 0.01
"""Labels of a point in more doubt than this are measured, whatever the audit says."""
GROWTH = 1.15
"""By how much the measured points grow before the model is made anew."""
MOST_KNOWN = 2_500
"""Points that a model takes: its cost grows with their cube."""
_BLOCK = 1024


@dataclass(frozen=True)
class Audit:
    """What predicting the audit's points says.

    bound: see the top. points: how many of the second half were predicted with a doubt within it;
    wrong: how many of these wrongly.
    """

    bound: float
    points: int
    wrong: int

    @property
    def error(self) -> float:
        """The measured share of wrong labels among the inferred, drawn up by half a point."""
        return (self.wrong + 0.5) / (self.points + 1)

    def __str__(self) -> str:
        if not self.points:
            return "inferred labels: none could be audited"
        low, high = wilson(self.wrong, self.points)
        return (
            f"inferred labels: {self.wrong} of {self.points} audited points wrong "
            f"(95 %: {low:.1%} to {high:.1%})"
        )


@dataclass(frozen=True, eq=False)
class Inferred:
    """What a model says of the unmeasured ``rows`` of the space.

    labels i16 [point, domain]; doubt f64 [point], that any of them is wrong. Per want: the row
    where it is ``likely`` hit, with which chance, and that of its ``widest`` predicted margin.
    """

    rows: NDArray[np.intp]
    labels: NDArray[np.int16]
    doubt: NDArray[np.float64]
    likely: NDArray[np.intp]
    chance: NDArray[np.float64]
    widest: NDArray[np.intp]
    margin: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Map:
    """One model's audit and what it infers."""

    inferred: Inferred
    audit: Audit
    fit: Fit


class Refine:
    """See the top. doubt: labels in more doubt are measured; audit: share of points audited.

    Raises RecipeError for shares outside (0, 1).
    """

    name = "refine"

    def __init__(self, problem: Problem, *, doubt: float = DOUBT, audit: float = AUDIT) -> None:
        for what, share in (("doubt", doubt), ("audit", audit)):
            if not 0 < share < 1:
                raise RecipeError(f"refine: {what} is {share}, expected a share between 0 and 1")
        self._problem, self._doubt = problem, doubt
        space = problem.space
        order = coarse_order(space)
        coarse = order[: _coarse_count(point_fineness(space))]
        mixed = np.random.default_rng([problem.seed, len(space)]).permutation(len(space))
        least = min(LEAST_AUDIT, int(COARSE * len(space)))
        size = int(min(max(least, audit * len(space)), MOST_AUDIT))
        self._audit = mixed[~np.isin(mixed, coarse)][:size]
        points = space.points
        self._first = [points[row] for row in (*coarse.tolist(), *self._audit.tolist())]
        self._coarse = len(coarse)
        self._kept: tuple[Told, Map] | None = None

    def ask(self, told: Told, count: int) -> Ask:
        """Coarse grid, audit, then what is in doubt; no points and no why_done: await pending."""
        taken = told.taken
        first = [
            (point, "coarse grid" if place < self._coarse else "audit")
            for place, point in enumerate(self._first)
            if point not in taken
        ]
        if first:
            return _asked(first[:count])
        if len(taken) >= len(self._problem.space):
            return Ask((), why_done="every point was asked for")
        known = self._round(len(told.points))
        if known:
            found = self._wanted(_begin(told, known), taken)
            if found:
                return _asked(found[:count])
        if len(told.points) < max(4, self._coarse // 2):
            return Ask(())  # too little for a model; the rest of the coarse grid is pending
        found = self._wanted(told, taken)
        if found:
            return _asked(found[:count])
        if told.pending:
            return Ask(())
        made = self._map(told)
        done = f"no label is in more doubt than {made.audit.bound:.2g}; {made.audit}"
        return Ask((), note=str(made.audit), why_done=done)

    def outlook(self, told: Told) -> Outlook | None:
        """Labels are measured where sure is 1, else inferred; None before the audit.

        sure is 1 − doubt, and at most 1 − the audit's error: the model's own tails are too thin.
        """
        if len(told.points) + len(told.out) < len(self._first):
            return None
        made, space, board = self._map(told), self._problem.space, self._problem.board
        inferred = made.inferred
        labels = np.empty((len(space), len(board.main.domains)), np.int16)
        sure = np.ones(len(space), np.float32)
        measured = [space.row(point) for point in told.points]
        labels[measured] = board.labels(told.scores)
        labels[inferred.rows] = inferred.labels
        sure[inferred.rows] = 1 - np.maximum(inferred.doubt, made.audit.error)
        wants = self._problem.wants
        chance: Mapping[Want, float] = dict(zip(wants, inferred.chance.tolist(), strict=True))
        return Outlook(chance, made.fit, labels, sure)

    def _round(self, count: int) -> int:
        """How many of ``count`` measured points the model takes: 0, or a step of GROWTH."""
        size = len(self._first)
        if count < size:
            return 0
        while (more := max(int(size * GROWTH), size + 1)) <= count:
            size = more
        return size

    def _wanted(self, told: Told, taken: set[Point]) -> list[tuple[Point, str]]:
        """What is worth measuring after ``told``, the most urgent first."""
        made, problem = self._map(told), self._problem
        inferred, bound, points = made.inferred, made.audit.bound, problem.space.points
        if not len(inferred.rows):
            return []
        hit, margin = problem.board.judge(told.scores, problem.wants)
        reached, best = np.asarray(hit.any(axis=0)), np.asarray(margin.max(axis=0))
        found: dict[Point, str] = {}
        for column, want in enumerate(problem.wants):
            if not reached[column] and inferred.chance[column] > bound:
                found.setdefault(points[inferred.likely[column]], f"for {want}")
            elif reached[column] and inferred.margin[column] > best[column]:
                found.setdefault(points[inferred.widest[column]], f"larger margin of {want}")
        doubtful = np.flatnonzero(inferred.doubt > bound)
        for place in doubtful[np.argsort(-inferred.doubt[doubtful], kind="stable")].tolist():
            found.setdefault(points[inferred.rows[place]], "label in doubt")
        return [(point, why) for point, why in found.items() if point not in taken]

    def _map(self, told: Told) -> Map:
        kept = self._kept
        if kept is None or not _same(kept[0], told):
            self._kept = kept = (told, self._make(told))
        return kept[1]

    def _make(self, told: Told) -> Map:
        problem = self._problem
        known = np.array([problem.space.row(point) for point in told.points])
        rows = np.setdiff1d(np.arange(len(problem.space)), known)
        scores = told.scores
        if len(known) > MOST_KNOWN:
            some = np.linspace(0, len(known) - 1, MOST_KNOWN).round().astype(int)
            known, scores = known[some], scores[some]
        process = Process.fit(
            unit(problem.space, problem.space.grid[known]), scores.astype(np.float64)
        )
        chances = Chances(problem.board, problem.wants, scores, process)
        errors = process.left_out(scores.astype(np.float64))
        audit = self._audited(known, scores, errors, chances)
        trusted = audit.wrong <= max(1.0, TRUSTED * audit.points)
        fit = Fit(
            float(np.sqrt((errors**2).mean())),
            float(chances.main.inside.mean()),
            trusted,
            "" if trusted else str(audit),
        )
        return Map(self._inferred(rows, scores, chances), audit, fit)

    def _audited(
        self,
        known: NDArray[np.intp],
        scores: NDArray[np.float32],
        errors: NDArray[np.float64],
        chances: Chances,
    ) -> Audit:
        """What predicting the audit's points says; ``known``: the rows of ``scores``."""
        board = self._problem.board
        predicted = board.labels((scores - errors).astype(np.float32))
        wrong = (predicted != board.labels(scores)).any(axis=1)
        doubt = _doubt(chances.dominance(chances.main.left_out), predicted)
        first, second = (np.isin(known, self._audit[half::2]) for half in (0, 1))
        bound = min(self._doubt, float(doubt[first & wrong].min(initial=1.0)) / 2)
        within = second & (doubt <= bound)
        return Audit(bound, int(within.sum()), int((within & wrong).sum()))

    def _inferred(
        self, rows: NDArray[np.intp], scores: NDArray[np.float32], chances: Chances
    ) -> Inferred:
        problem, board, wants = self._problem, self._problem.board, self._problem.wants
        labels = np.empty((len(rows), len(board.main.domains)), np.int16)
        doubt = np.empty(len(rows))
        likely, chance = np.zeros(len(wants), np.intp), np.zeros(len(wants))
        widest, margin = np.zeros(len(wants), np.intp), np.full(len(wants), -np.inf)
        for start in range(0, len(rows), _BLOCK):
            some = rows[start : start + _BLOCK]
            weights, spread = chances.process.weights(unit(problem.space, problem.space.grid[some]))
            mean = weights.astype(np.float32) @ scores
            scaled = (weights / np.sqrt(spread)[:, None]).astype(np.float32)
            found = chances.dominance(chances.main.moments(scaled))
            labels[start : start + _BLOCK] = board.labels(mean)
            doubt[start : start + _BLOCK] = _doubt(found, labels[start : start + _BLOCK])
            _keep_best(likely, chance, some, chances.of(scaled))
            _keep_best(widest, margin, some, board.judge(mean, wants)[1])
        return Inferred(rows, labels, doubt, likely, chance, widest, margin)


def _keep_best(
    where: NDArray[np.intp],
    best: NDArray[np.float64],
    rows: NDArray[np.intp],
    values: NDArray[np.float64],
) -> None:
    """Put into ``where`` and ``best`` [want] what is larger in ``values`` [row, want]."""
    place = values.argmax(axis=0)
    most = values.max(axis=0)
    larger = most > best
    where[larger] = rows[place][larger]
    best[larger] = most[larger]


def _coarse_count(fineness: NDArray[np.intp]) -> int:
    """How many points the coarse grid has."""
    counts = np.cumsum(np.bincount(fineness)).tolist()
    fit = [count for count in counts if count <= COARSE * len(fineness)]
    return int(fit[-1] if fit else counts[min(1, len(counts) - 1)])


def _doubt(dominance: NDArray[np.float64], labels: NDArray[np.int16]) -> NDArray[np.float64]:
    """How likely any of a point's ``labels`` [point, domain] is not the true one."""
    none = np.maximum(1 - dominance.sum(axis=-1), 0)
    likely = np.take_along_axis(dominance, np.maximum(labels, 0)[..., None].astype(np.intp), -1)
    return np.asarray(1 - np.where(labels < 0, none, likely[..., 0]).prod(axis=1))


def _asked(found: list[tuple[Point, str]]) -> Ask:
    return Ask(tuple(point for point, _ in found), tuple(why for _, why in found))


def _begin(told: Told, count: int) -> Told:
    return Told(told.points[:count], told.scores[:count])


def _same(one: Told, other: Told) -> bool:
    return one.points == other.points and np.array_equal(one.scores, other.scores)
