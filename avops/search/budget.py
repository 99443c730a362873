"""What a search may spend, what it spent, and who is told on the way."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True)
class Budget:
    """What may be spent on the search; None: as much as the strategy asks for.

    evaluations: points measured in this run directory, those of earlier commands and those that
    were put out of a race included. hours: of this command.
    """

    evaluations: int | None = None
    hours: float | None = None


@dataclass(frozen=True)
class Progress:
    """How far a search is. found: combinations hit, of ``wanted``. budget: None without one.

    seconds: of one evaluation, at the workers' present pace.
    """

    measured: int
    budget: int | None
    found: int
    wanted: int
    seconds: float


class Watch(Protocol):
    """Who is told how a search goes."""

    def progress(self, now: Progress) -> None:
        """A point was measured."""

    def note(self, text: str) -> None:
        """Something the user should know now."""


@dataclass
class Clock:
    """Where the time of one command went, in seconds.

    planner: the strategy's asking. waited: of it, while no worker had anything to do. setting,
    scoring: of all workers. keeping: in the store. loading: until the first worker could begin.
    wall: the search from beginning to end, loading included.
    """

    planner: float = 0.0
    waited: float = 0.0
    setting: float = 0.0
    scoring: float = 0.0
    keeping: float = 0.0
    loading: float = 0.0
    wall: float = 0.0
    evaluations: int = 0
    begun: float = field(default_factory=time.perf_counter)

    def scoring_share(self, workers: int) -> float:
        """The share of the workers' time, once loaded, in which they scored."""
        return self.scoring / max(workers * (self.wall - self.loading), 1e-9)
