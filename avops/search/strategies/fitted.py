"""The model of one Told: fitted, and judged by leave-one-out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from avops.search.strategies.chances import Chances
from avops.search.strategies.design import unit
from avops.search.strategies.gp import Process
from avops.search.strategies.strategy import Fit, Problem, Told

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Known points that a model takes: a factorisation costs their number cubed.
MOST_KNOWN = 1_500
# A model fits when leave-one-out explains this share of the variance of the differences between
# levels, and the leads' errors are at most this many of their standard deviations (κ).
EXPLAINED, MISJUDGED = 0.5, 2.5


@dataclass(frozen=True, eq=False)
class Model:
    """What was fitted to ``told``. hit, margin: of its points, [point, want]."""

    told: Told
    process: Process
    chances: Chances
    fit: Fit
    hit: NDArray[np.bool_]
    margin: NDArray[np.float64]

    def serves(self, told: Told) -> bool:
        """Whether it was fitted to the same results."""
        mine = self.told
        same = mine.points == told.points
        return same and (mine.scores is told.scores or np.array_equal(mine.scores, told.scores))

    def with_pending(self, told: Told) -> Model:
        """The same results with the pending points of ``told``."""
        return replace(self, told=told)


def fit_model(problem: Problem, told: Told) -> Model:
    """Fit to the first MOST_KNOWN points of ``told``; pure."""
    known, scores = told.points[:MOST_KNOWN], told.scores[:MOST_KNOWN]
    points = unit(problem.space, np.array(known, dtype=np.int32))
    process = Process.fit(points, contrasts(problem, scores))
    chances = Chances(problem.board, problem.wants, scores, process)
    hit, margin = problem.board.judge(told.scores, problem.wants)
    return Model(told, process, chances, _fit(process, chances, scores), hit, margin)


def contrasts(problem: Problem, scores: NDArray[np.float32]) -> NDArray[np.float64]:
    """Scores less their item's mean over its levels: all that decides who wins."""
    board = problem.board
    parts = []
    for part, span in zip(
        (board.main, *(guard.part for guard in board.guards)), board.spans, strict=True
    ):
        table = scores[:, span].astype(np.float64).reshape(len(scores), -1, len(part.levels))
        parts.append((table - table.mean(axis=-1, keepdims=True)).reshape(len(scores), -1))
    return np.concatenate(parts, axis=1)


def _fit(process: Process, chances: Chances, scores: NDArray[np.float32]) -> Fit:
    tally = chances.main
    errors = process.left_out(scores.astype(np.float64))
    centred = tally.gaps - tally.gaps.mean(axis=0)
    explained = 1 - float((tally.errors**2).sum() / max(float((centred**2).sum()), 1e-300))
    misjudged = chances.inflation**0.5
    reason = ""
    if explained < EXPLAINED:
        reason = (
            f"leave-one-out explains {explained:.0%} of the variance of the scores' differences, "
            f"expected {EXPLAINED:.0%}"
        )
    elif misjudged > MISJUDGED:
        reason = (
            f"leads are off by {misjudged:.1f} of their standard deviations, expected at most "
            f"{MISJUDGED:g}"
        )
    return Fit(
        error=float(np.sqrt((errors**2).mean())),
        coverage=float(tally.inside.mean()),
        trusted=not reason,
        reason=reason,
    )
