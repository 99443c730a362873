"""Groups on their way to a device: read ahead, copied and combined at the same time.

    disk ─ reader threads ─▶ host image ─ COPIES ─▶ device image ─ KERNELS ─▶ the model

Host and device images are reused. A device image is written again when the kernels that read it
are over, a host image when its copy is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from avops.knobs.lanes import COPIES, KERNELS, Lane
from avops.knobs.loader import Loader, stop
from avops.knobs.pieces import Group, Read

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, eq=False)
class Slot:
    """A device image. copied: the values have come. used: the kernels that read them are over."""

    memory: torch.Tensor
    copied: Any
    used: Any

    @classmethod
    def new(cls, lane: Lane, nbytes: int) -> Slot:
        """A slot of ``nbytes`` bytes."""
        return cls(lane.device_memory(nbytes), lane.event(), lane.event())


@dataclass(frozen=True, eq=False)
class Job:
    """One group: which values go to which slot, and what is done with them there.

    owners: 0 for the base's values, 1 + k for those of vector k.
    """

    group: Group
    owners: tuple[int, ...]
    slot: Slot
    work: Callable[[], None] | None = None

    @property
    def reads(self) -> Iterator[Read]:
        """What is read for it."""
        return (read for owner in self.owners for read in self.group.reads[owner])

    @property
    def spans(self) -> list[tuple[int, int]]:
        """The parts of the image that it needs; those that touch are one."""
        spans: list[tuple[int, int]] = []
        for start, end in (self.group.spans[owner] for owner in self.owners):
            if start == end:
                continue
            if spans and spans[-1][1] == start:
                start = spans.pop()[0]
            spans.append((start, end))
        return spans


class Feed(Protocol):
    """Where host images come from."""

    def begin(self, jobs: Sequence[Job]) -> None:
        """Get ready for ``jobs``."""

    def image(self, number: int) -> torch.Tensor:
        """The host image of job ``number``, filled."""

    def sent(self, number: int) -> None:
        """Its copies have been given to the lane."""

    def stop(self) -> None:
        """The jobs were given up."""


@dataclass(frozen=True, eq=False)
class Held:
    """Host images that stay: pinned memory."""

    images: Sequence[torch.Tensor]
    _jobs: list[Job] = field(default_factory=list)

    def begin(self, jobs: Sequence[Job]) -> None:
        """Remember the order."""
        self._jobs[:] = jobs

    def image(self, number: int) -> torch.Tensor:
        """The image of the job's group."""
        return self.images[self._jobs[number].group.number]

    def sent(self, number: int) -> None:
        """Nothing: the image stays as it is."""

    def stop(self) -> None:
        """Nothing is under way."""


class Ring:
    """A few host images that the files are read into, ahead of the copies."""

    COUNT = 4

    def __init__(self, lane: Lane, loader: Loader, nbytes: int) -> None:
        self._lane, self._loader = lane, loader
        self._memory = [lane.host_memory(nbytes) for _ in range(self.COUNT)]
        self._free = [lane.event() for _ in range(self.COUNT)]
        self._jobs: Sequence[Job] = ()
        self._reading: dict[int, list[Future[None]]] = {}

    def begin(self, jobs: Sequence[Job]) -> None:
        """Begin to read for the first jobs."""
        self._jobs = jobs
        for number in range(self.COUNT):
            self._read(number)

    def image(self, number: int) -> torch.Tensor:
        """Wait for the readers."""
        for future in self._reading[number]:
            future.result()
        del self._reading[number]
        return self._memory[number % self.COUNT]

    def sent(self, number: int) -> None:
        """Read on into the image before this one: its copy is over, or nearly so."""
        self._lane.record(self._free[number % self.COUNT], COPIES)
        if number:
            self._read(number - 1 + self.COUNT)

    def stop(self) -> None:
        """Wait for the readers to leave the images alone."""
        stop(future for futures in self._reading.values() for future in futures)
        self._reading.clear()

    def _read(self, number: int) -> None:
        if number < len(self._jobs):
            place = number % self.COUNT
            self._lane.wait(self._free[place])
            image = self._memory[place].numpy()
            self._reading[number] = self._loader.submit(image, self._jobs[number].reads)


def carry(
    lane: Lane, feed: Feed, jobs: Sequence[Job], done: Callable[[Job], None] | None = None
) -> None:
    """Give all ``jobs`` to ``lane``, in order; does not wait for the last ones.

    done: called for each job when its copies have been given.
    """
    try:
        feed.begin(jobs)
        for number, job in enumerate(jobs):
            image = feed.image(number)
            lane.after(COPIES, job.slot.used)
            for start, end in job.spans:
                lane.copy(job.slot.memory[start:end], image[start:end])
            lane.record(job.slot.copied, COPIES)
            feed.sent(number)
            if job.work is not None:
                lane.after(KERNELS, job.slot.copied)
                lane.compute(job.work)
                lane.record(job.slot.used, KERNELS)
            if done is not None:
                done(job)
    except BaseException:
        feed.stop()
        raise
