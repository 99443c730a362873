"""Disk to host memory on several threads: what is cached from there, all else past the cache."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait

import numpy as np

from avops import env
from avops.disk import Checkpoint
from avops.disk.source import ALIGN, DIRECT_FROM, Source, aligned_memory
from avops.knobs.pieces import Read

# Bytes of one task: long enough for the disk, short enough to keep all threads busy.
CHUNK = 1 << 23


class Loader:
    """Reads of the files of ``checkpoints``, numbered one after the other.

    keep: read through the page cache, so that the files stay there for the next time; otherwise
    what is not cached is read past it. Memory: CHUNK for each thread.
    """

    def __init__(self, checkpoints: Sequence[Checkpoint], *, keep: bool = False) -> None:
        self._keep = keep
        self._sources: list[Source] = []
        for checkpoint in checkpoints:
            for shard in checkpoint.shards:
                self._sources.append(Source(shard.path, shard.identity))
                weakref.finalize(self, self._sources[-1].close)
        self._pool = ThreadPoolExecutor(env.workers(), thread_name_prefix="avops-read")
        self._own = threading.local()

    def check(self) -> None:
        """Raise CheckpointError when a file is no longer what it was when it was opened."""
        for source in self._sources:
            source.check()

    def submit(self, image: np.ndarray, reads: Iterable[Read]) -> list[Future[None]]:
        """Begin to fill ``image``, bytes anywhere in memory."""
        return [self._pool.submit(self._fill, image, task) for task in _tasks(reads)]

    def _fill(self, image: np.ndarray, reads: Sequence[Read]) -> None:
        for read in reads:
            self._read(self._sources[read.file], image[read.at : read.at + read.nbytes], read)

    def _read(self, source: Source, part: np.ndarray, read: Read) -> None:
        cached = read.nbytes < DIRECT_FROM or self._keep
        if cached or source.cached_fd(read.offset, read.nbytes) is not None:
            source.read_all(part.data, read.offset)
            return
        # Direct reads need blocks of their own: they come whole, at the file's own alignment.
        memory, lead = self._memory(), read.offset % ALIGN
        source.read(memory.data, lead, read.offset, read.nbytes)
        part[:] = memory[lead : lead + read.nbytes]

    def _memory(self) -> np.ndarray:
        found: np.ndarray | None = getattr(self._own, "memory", None)
        if found is None:
            found = np.frombuffer(aligned_memory(CHUNK + 2 * ALIGN), np.uint8)
            self._own.memory = found
        return found


def stop(futures: Iterable[Future[None]]) -> None:
    """Cancel what has not begun, and wait for what has: it writes to memory that is used again."""
    futures = list(futures)
    for future in futures:
        future.cancel()
    wait(futures)


def _tasks(reads: Iterable[Read]) -> Iterator[list[Read]]:
    """``reads`` in lists of about CHUNK bytes; long ones are cut."""
    task: list[Read] = []
    filled = 0
    for read in reads:
        for start in range(0, read.nbytes, CHUNK):
            nbytes = min(CHUNK, read.nbytes - start)
            task.append(Read(read.file, read.offset + start, nbytes, read.at + start))
            filled += nbytes
            if filled >= CHUNK:
                yield task
                task, filled = [], 0
    if task:
        yield task
