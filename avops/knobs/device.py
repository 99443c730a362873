"""Tensors of a device, combined there by tables that are made once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from avops.knobs.batches import Batch, Maker
from avops.knobs.lanes import Lane
from avops.knobs.loader import Loader, stop
from avops.knobs.pieces import Group, cut, file_numbers
from avops.knobs.residency import Need, Room, choose
from avops.knobs.site import NONFINITE, Inputs, Told
from avops.knobs.targets import Target
from avops.knobs.transfer import Feed, Held, Job, Ring, Slot, carry

if TYPE_CHECKING:
    import torch

# Device images at work where not all of them stay: one is filled, one read, one between the two.
SLOTS = 3
# Pinned memory comes in powers of two, so images share stretches of this many bytes.
ARENA = 1 << 30


class DeviceSite:
    """Targets on the device of ``lane``. wanted: the residency, or ``auto``: by free memory.

    host: bytes of host memory that are available.
    """

    def __init__(
        self,
        lane: Lane,
        numbers: Sequence[int],
        targets: Sequence[Target],
        inputs: Inputs,
        *,
        wanted: str,
        host: int,
    ) -> None:
        self.device, self.numbers = lane.device, tuple(numbers)
        self._lane, self._targets, self._inputs = lane, tuple(targets), inputs
        self._checkpoints = [inputs.base.checkpoint]
        self._checkpoints += [vector.vector.checkpoint for vector in inputs.vectors]
        files = file_numbers([len(checkpoint.shards) for checkpoint in self._checkpoints])
        self._groups = cut(self._targets, inputs.vectors, files)
        self._image = max((group.nbytes for group in self._groups), default=0)
        self._held = sum(group.nbytes for group in self._groups)
        need = Need(self._held, (SLOTS + Ring.COUNT) * self._image)
        self.choice = choose(wanted, need, Room(*lane.room(), host))
        # Where all files fit into the page cache beside everything else, they are kept there.
        self._keep = self.choice.kind == "disk" and 2 * self._held < host
        disk = self.choice.kind == "disk"
        self.total = sum(g.spans[0][1] for g in self._groups) if disk else self._held
        self._told: Told | None = None
        self._slots: list[Slot] = []
        self._read: Loader | None = None
        self._feed: Feed | None = None
        self._batches: list[Batch] = []
        self._rows = np.zeros((0, 0), np.float32)

    @property
    def pinned_bytes(self) -> int:
        """Bytes of host memory that it takes for good."""
        return self._held if self.choice.kind == "pinned" else 0

    def load(self, told: Told) -> None:
        """Bring base and vectors to where they stay, and make the tables."""
        if not self._groups:
            return
        loader = Loader(self._checkpoints, keep=self._keep)
        if self.choice.kind == "device":
            self._slots = [Slot.new(self._lane, group.nbytes) for group in self._groups]
            self._lane.begin()  # What had this memory before may still be at work.
            self._fill(loader, told)
        else:
            count = min(SLOTS, len(self._groups))
            self._slots = [Slot.new(self._lane, self._image) for _ in range(count)]
            if self.choice.kind == "pinned":
                self._feed = Held(self._hold(loader, told))
            else:
                self._feed = Ring(self._lane, loader, self._image)
                self._read, self._told = loader, told
        self._batches = self._make()

    def check(self) -> None:
        """Raise CheckpointError when a file that is read by each ``start`` was changed.

        AvopsError when the device cannot take work now.
        """
        self._lane.check()
        if self._read is not None:
            self._read.check()

    def start(self, rows: np.ndarray) -> None:
        """Give everything to the device."""
        if not self._groups:
            return
        self._lane.begin()
        dials = range(rows.shape[1])
        # Tables have one column at least.
        self._rows = rows if dials else np.zeros((len(rows), 1), np.float32)
        self._run(self._groups, lambda batch: batch.combine(self._rows), dials)

    def finish(self) -> np.ndarray:
        """Wait for the device, and for the counts."""
        counts = np.zeros((len(self._targets), 4), np.int64)
        if self._groups:
            self._lane.finish()
        for batch in self._batches:
            np.add.at(counts, batch.numbers, batch.table.count_rows())
        self._restore(counts)
        self.check()
        return counts

    def _restore(self, counts: np.ndarray) -> None:
        """Write anew what no term touches and is not finite: a NaN keeps its sign and payload."""
        idle = {
            number
            for number, target in enumerate(self._targets)
            if counts[number, NONFINITE] and target.kept and not self._rows[number].any()
        }
        if idle:
            groups = [g for g in self._groups if any(p.target in idle for p in g.pieces)]
            self._run(groups, lambda batch: batch.restore(idle), ())
            self._lane.finish()

    def _run(
        self,
        groups: Sequence[Group],
        work: Callable[[Batch], Callable[[], None]],
        dials: Iterable[int],
    ) -> None:
        """Do ``work`` on ``groups``, with the values of those ``dials`` that are not 0 there."""
        if self._feed is None:
            for batch in self._batches:
                self._lane.compute(work(batch))
            return
        dials = tuple(dials)
        jobs = []
        for group in groups:
            rows = self._rows[[piece.target for piece in group.pieces]]
            owners = (0, *(1 + dial for dial in dials if rows[:, dial].any()))
            slot = self._slots[group.number % len(self._slots)]
            jobs.append(Job(group, owners, slot, work(self._batches[group.number])))
        carry(self._lane, self._feed, jobs, _adding(self._told, (0,)))
        self._told = None

    def _make(self) -> list[Batch]:
        """One batch for all that stays on the device, otherwise one for each group."""
        maker = Maker(self.device, self._targets, self._inputs.vectors)
        memory = [slot.memory for slot in self._slots]
        if self._feed is not None:
            slots = [memory[group.number % len(memory)] for group in self._groups]
            return [
                maker.batch([group], [image])
                for group, image in zip(self._groups, slots, strict=True)
            ]
        nbytes = max(map(maker.scratch, self._groups))
        if not nbytes:
            return [maker.batch(self._groups, memory)]
        scratch = self._lane.device_memory(nbytes)
        return [
            maker.batch([group], [image], scratch)
            for group, image in zip(self._groups, memory, strict=True)
        ]

    def _fill(self, loader: Loader, told: Told) -> None:
        """Fill the device's images, through a few host images."""
        owners = tuple(range(len(self._checkpoints)))
        jobs = [Job(g, owners, slot) for g, slot in zip(self._groups, self._slots, strict=True)]
        ring = Ring(self._lane, loader, self._image)
        carry(self._lane, ring, jobs, _adding(told, owners))
        self._lane.finish()
        loader.check()

    def _hold(self, loader: Loader, told: Told) -> list[torch.Tensor]:
        """Host images of all groups, filled."""
        done = 0
        images = _arenas(self._lane, [group.nbytes for group in self._groups])
        # The readers take them in order, and hold a chunk each.
        waiting = [
            loader.submit(image.numpy(), (read for reads in group.reads for read in reads))
            for group, image in zip(self._groups, images, strict=True)
        ]
        try:
            for group, futures in zip(self._groups, waiting, strict=True):
                for future in futures:
                    future.result()
                done += group.nbytes
                told(done)
        except BaseException:
            stop(future for futures in waiting for future in futures)
            raise
        loader.check()
        return images


def _adding(told: Told | None, owners: Iterable[int]) -> Callable[[Job], None] | None:
    """What tells ``told`` of the bytes of ``owners`` in all jobs so far."""
    if told is None:
        return None
    owners, done = tuple(owners), 0

    def add(job: Job) -> None:
        nonlocal done
        done += sum(stop - start for start, stop in map(job.group.spans.__getitem__, owners))
        told(done)

    return add


def _arenas(lane: Lane, sizes: Sequence[int]) -> list[torch.Tensor]:
    """Host memory of each of ``sizes``, in stretches that are shared."""
    images: list[torch.Tensor] = []
    arena: torch.Tensor | None = None
    used, left = 0, sum(sizes)
    for size in sizes:
        if arena is None or used + size > len(arena):
            arena, used = lane.host_memory(max(size, min(ARENA, left))), 0
        images.append(arena[used : used + size])
        used += size
        left -= size
    return images
