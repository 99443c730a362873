"""What a crew asks of its workers, and what workers make their evaluators of."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from avops.errors import AvopsError

if TYPE_CHECKING:
    from avops.search.points import Job, Outcome, Place


class LostWorker(Exception):  # noqa: N818
    """A worker has died or cannot be reached: its job is given to another."""


class WorkerError(AvopsError):
    """A worker met an error that no other worker would escape."""


class Measurer(Protocol):
    """Measures jobs. digest: of what decides a row but the weights."""

    @property
    def digest(self) -> str:
        """See the class."""

    def load(self) -> None:
        """Load what the first job would."""

    def evaluate(self, job: Job, stopped: Callable[[], bool] | None = None) -> Outcome:
        """The outcome of ``job``."""


class Maker(Protocol):
    """Makes a measurer anywhere: data that can be pickled."""

    def make(self, place: Place) -> Measurer:
        """A measurer at ``place``."""


class Worker(Protocol):
    """One measurer, wherever it is. Used by one thread; ``stop`` may come from another."""

    place: Place

    def start(self) -> str:
        """Make the measurer, also after it was lost; returns its digest. Raises LostWorker."""

    def measure(self, job: Job) -> Outcome:
        """Raises LostWorker where it dies meanwhile, whatever the measurer raises otherwise."""

    def stop(self) -> None:
        """End it, in the middle of a job if need be."""
