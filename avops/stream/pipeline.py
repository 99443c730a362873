"""Read → combine → write, chunk by chunk, on several threads.

Memory is threads × chunk × (terms + 2), whatever the size of the model: each worker owns one
buffer per operand and reuses it. Chunks are independent, so any thread count and chunk size
give the same bytes.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

import numpy as np

from avops.disk import Staging, open_regular, read_exactly
from avops.dtypes import DType
from avops.kernels import CombineStats, Operand, Term, combine, diff
from avops.stream.plan import Chunk, Plan, Range, Segment, chunks

CHUNK = 1 << 19
_MAX_ITEM = 4

Progress = Callable[[int, int], None]


@dataclass
class Outcome:
    """What a run saw: element counts per tensor and in all."""

    elements: int = 0
    unchanged: int = 0
    nonfinite: Counter[str] = field(default_factory=Counter)


def run(
    plan: Plan,
    staging: Staging,
    *,
    threads: int,
    progress: Progress | None = None,
) -> Outcome:
    """Carry out ``plan`` into ``staging``. ``progress(done, total)`` gets bytes read.

    The first error stops all workers and is raised. An interrupt does the same.
    """
    job = _Job(plan, staging, CHUNK, progress)
    try:
        with ThreadPoolExecutor(threads, thread_name_prefix="avops") as pool:
            try:
                waiting = {pool.submit(job.work) for _ in range(threads)}
                while waiting:
                    # A signal's handler runs between waits, however the threads are scheduled.
                    done, waiting = wait(waiting, timeout=0.2, return_when=FIRST_EXCEPTION)
                    for future in done:
                        future.result()
            except BaseException:
                job.stop.set()
                raise
    finally:
        job.close()
    return job.outcome


class _Job:
    """One run's shared state: descriptors, the queue of chunks, and the outcome."""

    def __init__(self, plan: Plan, staging: Staging, chunk: int, progress: Progress | None) -> None:
        self.plan, self.staging, self.chunk, self.progress = plan, staging, chunk, progress
        self.outcome = Outcome()
        self.stop = threading.Event()
        self._lock = threading.Lock()
        self._queue: Iterator[Chunk] = chunks(plan, chunk)
        self._total, self._done = plan.bytes_read, 0
        self.inputs: list[int] = []
        self.outputs: list[int] = []
        try:
            for path in plan.inputs:
                self.inputs.append(open_regular(path))
            for output in plan.outputs:
                fd = staging.create(output.name, output.size)
                staging.write(fd, output.prefix, 0)
                self.outputs.append(fd)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        for fd in self.inputs:
            os.close(fd)
        self.inputs.clear()

    def work(self) -> None:
        buffers = _Buffers(self, self.plan.max_terms)
        while not self.stop.is_set():
            with self._lock:
                chunk = next(self._queue, None)
            if chunk is None:
                return
            try:
                stats, nbytes = buffers.process(chunk)
                self._record(chunk, stats, nbytes)
            except BaseException:
                self.stop.set()
                raise

    def _record(self, chunk: Chunk, stats: CombineStats | None, nbytes: int) -> None:
        with self._lock:
            if stats is not None:
                self.outcome.elements += chunk.count
                self.outcome.unchanged += stats.unchanged
                if stats.nonfinite:
                    self.outcome.nonfinite[chunk.segment.tensor] += stats.nonfinite
            self._done += nbytes
            if self.progress is not None:
                self.progress(self._done, self._total)


class _Buffers:
    """One worker's buffers: base, each term, output."""

    def __init__(self, job: _Job, terms: int) -> None:
        self.job = job
        size = job.chunk * _MAX_ITEM
        self._base, self._out = np.empty(size, np.uint8), np.empty(size, np.uint8)
        self._terms = [np.empty(size, np.uint8) for _ in range(terms)]

    def process(self, chunk: Chunk) -> tuple[CombineStats | None, int]:
        """Carry out ``chunk``. Returns the statistics and the bytes read."""
        segment = chunk.segment
        if segment.operation == "copy":
            data = self._base[: chunk.count]
            self._read_bytes(segment.base, chunk.start, data)
            self._write(segment, chunk.start, data)
            return None, chunk.count
        base = self._read(self._base, segment.base, chunk)
        terms = [
            Term(self._read(buffer, term.values, chunk), term.lam, term.aligned)
            for buffer, term in zip(self._terms, segment.terms, strict=False)
        ]
        out = _operand(self._out, segment.dtype, chunk.count)
        if segment.operation == "combine":
            stats = combine(base, terms, out)
        else:
            found = diff(base, terms[0].values, out)
            stats = CombineStats(nonfinite=found.nonfinite, unchanged=found.zeros)
        size = segment.dtype.size
        self._write(segment, chunk.start * size, self._out[: chunk.count * size])
        nbytes = base.array.nbytes + sum(term.values.array.nbytes for term in terms)
        return stats, nbytes

    def _read(self, buffer: np.ndarray, where: Range, chunk: Chunk) -> Operand:
        operand = _operand(buffer, where.dtype, chunk.count)
        start = chunk.start * where.dtype.size
        self._read_bytes(where, start, buffer[: chunk.count * where.dtype.size])
        return operand

    def _read_bytes(self, where: Range, start: int, data: np.ndarray) -> None:
        fd = self.job.inputs[where.file]
        path = self.job.plan.inputs[where.file]
        read_exactly(fd, data.data, where.offset + start, str(path))

    def _write(self, segment: Segment, start: int, data: np.ndarray) -> None:
        fd = self.job.outputs[segment.output]
        self.job.staging.write(fd, data.data, segment.offset + start)


def _operand(buffer: np.ndarray, dtype: DType, count: int) -> Operand:
    return Operand(buffer[: count * dtype.size].view(dtype.storage), dtype)
