"""What a crew asks of its workers, and what workers make their evaluators of."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Protocol

from avops.errors import AvopsError

if TYPE_CHECKING:
    from avops.search.points import Job, Outcome, Place


class LostWorker(Exception):  # noqa: N818
    """A worker has died or cannot be reached: its job is given to another."""


class WorkerError(AvopsError):
    """A worker met an error that no other worker would escape."""


class Patience:
    """How long a worker may take for a job: far longer than any like it took.

    The first job of a kind has no bound: nothing is known of it, and it may build what later ones
    use. A worker beyond the bound hangs, and is replaced like one that died.
    """

    LEAST: ClassVar[float] = 600.0  # seconds: a busy machine is no reason
    TIMES: ClassVar[float] = 20.0

    def __init__(self) -> None:
        self._longest: dict[str, float] = {}

    def bound(self, job: Job) -> float | None:
        """Seconds after which a worker hangs; None where there is no telling."""
        longest = self._longest.get(job.split)
        return None if longest is None else max(self.LEAST, self.TIMES * longest)

    def took(self, job: Job, seconds: float) -> None:
        """Learn from a job that came back."""
        self._longest[job.split] = max(seconds, self._longest.get(job.split, 0.0))


def hangs(seconds: float) -> str:
    """Why a worker was given up that gave no answer for ``seconds``."""
    return f"no answer for {seconds:g} s, where the longest before took far less"


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
