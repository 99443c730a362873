"""The interface of strategies: told what was measured, they say what to measure next.

A strategy is a pure function of (space, board, wants, seed, what it was told): the same results in
the same order give the same answer, in any process, so that a study is taken up by telling it
again. It may keep what it computed, as long as that shows in nothing but time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np

from avops.search.board import Board, Want
from avops.search.space import Point, Space

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Problem:
    """What is searched: where, for what, and by which scores. seed: of everything random."""

    space: Space
    board: Board
    wants: tuple[Want, ...]
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Told:
    """Measured points in the order they arrived, with scores f32 [point, outputs].

    pending: points that are being measured at the moment. out: points without scores that are not
    to be measured again: put out of a race, or not finite.
    """

    points: tuple[Point, ...]
    scores: NDArray[np.float32]
    pending: tuple[Point, ...] = ()
    out: tuple[Point, ...] = ()

    @property
    def taken(self) -> set[Point]:
        """Points that must not be asked for."""
        return {*self.points, *self.pending, *self.out}

    @classmethod
    def nothing(cls, board: Board) -> Told:
        """Before the first measurement."""
        return cls((), np.empty((0, board.outputs), np.float32))


@dataclass(frozen=True)
class Fit:
    """How well a model of the scores predicts points that it was not given (leave-one-out).

    error: root mean square, nats. coverage: share of scores inside their 95 % interval.
    trusted: whether the model may be believed; reason says why not.
    """

    error: float
    coverage: float
    trusted: bool = True
    reason: str = ""


@dataclass(frozen=True, eq=False)
class Outlook:
    """What a model says of points that were not measured. Nothing here is a measurement.

    chance: wanted combination to the probability that some unmeasured point hits it. labels: the
    likely dominant level of each domain at every point of the space, i16 [point, domain], -1 for
    none. sure: the probability of those labels, f32 [point].
    """

    chance: Mapping[Want, float]
    fit: Fit
    labels: NDArray[np.int16]
    sure: NDArray[np.float32]


@dataclass(frozen=True)
class Ask:
    """Points to measure next, with the reason for each; no points: the strategy has finished.

    note: what the user should know now, such as that a model does not fit. why_done: set when it
    has finished. whole: the strategy needs all scores of these points, so they are not raced.
    """

    points: tuple[Point, ...]
    reasons: tuple[str, ...] = ()
    note: str = ""
    why_done: str = ""
    outlook: Outlook | None = field(default=None, compare=False)
    whole: bool = False


def asked_for_all(points: int) -> str:
    """Why a strategy has finished that asked for all ``points`` of the space."""
    return f"all {points:,} points were asked for" if points > 1 else "the only point was asked for"


class Strategy(Protocol):
    """Chooses points. ``name`` is what ``--strategy`` calls it."""

    name: str

    def ask(self, told: Told, count: int) -> Ask:
        """At most ``count`` points of the space, none of ``told.taken``."""

    def outlook(self, told: Told) -> Outlook | None:
        """What its model says of the rest of the space; None for strategies without one."""
