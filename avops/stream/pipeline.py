"""Read → combine → write, window by window, on several threads.

Memory is threads × window × (inputs + 1), whatever the size of the model. Windows are independent,
so any number of threads, in any order, gives the same bytes.
"""

from __future__ import annotations

import contextlib
import importlib
import resource
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from avops.disk.digest import BLOCK, block_digest, root_digest
from avops.disk.source import ALIGN, Source
from avops.stream.counts import Counts
from avops.stream.engine import Descriptors, drive, memory, serves
from avops.stream.plan import LowRankRange, Plan, Segment, bytes_per_count
from avops.stream.sink import StagingSink
from avops.stream.windows import Window, windows

if TYPE_CHECKING:
    from avops.stream.worker import Worker

# What all threads together may take for windows and their inputs.
_MEMORY = 72 << 20
_LARGE_PAGE = 1 << 21
# Blocks that the engine reads and writes at once when its inputs come from the disk.
_COLD_BLOCKS = 2

Progress = Callable[[int, int], None]


@dataclass
class Outcome:
    """What a run saw of one candidate: counts, and the digest of each output file."""

    counts: Counts = field(default_factory=Counts)
    digests: tuple[str, ...] = ()


class Sink(Protocol):
    """Where the windows of one candidate go."""

    @property
    def resumed(self) -> Mapping[tuple[int, int], Any]:
        """(file, block) to [digest, counts] of windows that an earlier run has put there."""

    def open(self) -> None:
        """Get ready."""

    def matches(self, window: Window, digest: bytes) -> bool:
        """Whether what is there for ``window`` has that digest."""

    def put(self, window: Window, data: memoryview, digest: bytes, counts: Counts) -> None:
        """Take the bytes of ``window``, and what was counted in it."""


def run(
    plan: Plan, sinks: Sequence[Sink | None], *, threads: int, progress: Progress | None = None
) -> list[Outcome]:
    """Carry out ``plan``, each candidate into its sink; without a sink, it is left out.

    ``progress(done, total)`` gets bytes read.

    The first error stops all workers and is raised. An interrupt does the same.
    Raises CheckpointError when an input is not, or no longer, what was planned with.
    """
    job = _Job(plan, sinks, progress)
    try:
        job.drive(threads)
        if not job.finished:
            _work_off(job, affordable(plan, threads, native=False)[0])
        for source in job.sources:
            source.check()
    finally:
        job.close()
    return job.outcomes()


def _work_off(job: _Job, threads: int) -> None:
    """What the engine has left, on Python's threads."""
    from avops.stream.factors import FactorCache
    from avops.stream.worker import Worker

    factors = FactorCache(job.sources, job.plan)
    with ThreadPoolExecutor(threads, thread_name_prefix="avops") as pool:
        try:
            workers = [Worker(job.plan, job.sources, factors) for _ in range(threads)]
            waiting = {pool.submit(job.work, worker) for worker in workers}
            while waiting:
                # A signal's handler runs between waits, however the threads are scheduled.
                done, waiting = wait(waiting, timeout=0.2, return_when=FIRST_EXCEPTION)
                for future in done:
                    future.result()
        except BaseException:
            job.stop.set()
            raise


class _Job:
    """One run's shared state: inputs, the queue of windows, and the outcomes."""

    def __init__(self, plan: Plan, sinks: Sequence[Sink | None], progress: Progress | None) -> None:
        self.plan, self.sinks, self.progress = plan, sinks, progress
        self.stop = threading.Event()
        self._lock = threading.Condition()
        self._at_work = 0
        # Candidate, output and block of what needs no Python any more.
        self._driven: set[tuple[int, int, int]] = set()
        self._queue: Iterator[Window] = (
            window for window in windows(plan) if self._lacking(window)
        )
        self._total, self._done = plan.bytes_read, 0
        self._counts = [Counts() for _ in sinks]
        self._digests = [
            [[b""] * -(-output.size // BLOCK) for output in plan.outputs] for _ in sinks
        ]
        self.sources: list[Source] = []
        # Two for each, and two of the engine's own.
        allow_open_files(4 * (len(plan.inputs) + len(sinks) * len(plan.outputs)))
        try:
            for item in plan.inputs:
                self.sources.append(Source(item.path, item.identity))
            for sink in sinks:
                if sink is not None:
                    sink.open()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the inputs when no thread is at work any more.

        The pool knows nothing of a thread at whose start an interrupt came, and does not wait.
        """
        self.stop.set()
        with self._lock:
            self._lock.wait_for(lambda: not self._at_work)
        for source in self.sources:
            source.close()

    def drive(self, threads: int) -> None:
        """Have the native engine do what it can."""
        wanted = self._wanted()
        targets: list[tuple[int, Descriptors]] = []
        for candidate, sink in wanted:
            if isinstance(sink, StagingSink):
                targets.append((candidate, sink.descriptors))
        if len(targets) < len(wanted) or not serves(self.plan, BLOCK):
            return
        for candidate, sink in wanted:
            self._take_up(candidate, sink, threads)
        cached = all(source.begins_cached() for source in self.sources)
        together = blocks_together(self.plan, cached=cached, native=True)
        here = self._total * len(self._driven) // max(1, self._blocks)
        blocks = drive(
            self.plan,
            self.sources,
            targets,
            done=self._driven,
            block=BLOCK,
            together=together,
            threads=affordable(self.plan, threads, together, native=True)[0],
            progress=lambda nbytes: self._reached(here + nbytes),
        )
        with _numpy_meanwhile(), contextlib.closing(blocks):
            for found in blocks:
                into = self.sinks[found.candidate]
                assert isinstance(into, StagingSink)
                into.written(found.output, found.number, found.digest, found.counts)
                self._record(
                    found.candidate, found.output, found.number, found.digest, found.counts
                )
                self._driven.add((found.candidate, found.output, found.number))
        if self.finished:
            self._reached(self._total)

    def _wanted(self) -> list[tuple[int, Sink]]:
        return [(number, sink) for number, sink in enumerate(self.sinks) if sink is not None]

    def _lacking(self, window: Window) -> list[tuple[int, Sink]]:
        """The candidates whose ``window`` the engine has left."""
        place = (window.output, window.block)
        return [pair for pair in self._wanted() if (pair[0], *place) not in self._driven]

    def _take_up(self, candidate: int, sink: Sink, threads: int) -> None:
        """Look which blocks of a killed run are whole."""
        if not sink.resumed:
            return
        with ThreadPoolExecutor(threads, thread_name_prefix="avops") as pool:
            try:
                shares = pool.map(
                    lambda first: self._whole(candidate, sink, first, threads), range(threads)
                )
                self._driven.update(*shares)
            except BaseException:
                self.stop.set()
                raise

    def _whole(
        self, candidate: int, sink: Sink, first: int, step: int
    ) -> set[tuple[int, int, int]]:
        """Of every ``step``-th block those that a killed run has written, and that are whole."""
        return {
            (candidate, number, block)
            for number, output in enumerate(self.plan.outputs)
            for block in range(first, -(-output.size // BLOCK), step)
            if not self.stop.is_set()
            and self._resume(candidate, sink, _block(number, block, output.size))
        }

    @property
    def _blocks(self) -> int:
        """Of all candidates that are written."""
        return len(self._wanted()) * sum(map(len, self._digests[0]))

    @property
    def finished(self) -> bool:
        """Whether the engine has done everything."""
        return len(self._driven) == self._blocks

    def work(self, worker: Worker) -> None:
        """Windows, one after the other, until none is left."""
        with self._lock:
            if self.stop.is_set():
                return
            self._at_work += 1
        try:
            self._work(worker)
        finally:
            with self._lock:
                self._at_work -= 1
                self._lock.notify_all()

    def _work(self, worker: Worker) -> None:
        while not self.stop.is_set():
            with self._lock:
                window = next(self._queue, None)
            if window is None:
                return
            try:
                self._advance(self._process(worker, window))
            except BaseException:
                self.stop.set()
                raise

    def _process(self, worker: Worker, window: Window) -> int:
        """Carry out ``window`` where it is not done yet. Returns the bytes read."""
        wanted = [
            candidate
            for candidate, sink in self._lacking(window)
            if not self._resume(candidate, sink, window)
        ]
        if not wanted:
            return sum(piece.count * bytes_per_count(piece.segment) for piece in window.pieces)
        operands, nbytes = worker.read(window)
        for candidate, data, counts in worker.candidates(window, operands, wanted):
            self._deliver(candidate, window, data, counts)
        return nbytes

    def _deliver(self, candidate: int, window: Window, data: memoryview, counts: Counts) -> None:
        digest, sink = block_digest(data), self.sinks[candidate]
        if sink is not None:
            sink.put(window, data, digest, counts)
        self._record(candidate, window.output, window.block, digest, counts)

    def _resume(self, candidate: int, sink: Sink, window: Window) -> bool:
        found = sink.resumed.get((window.output, window.block))
        if found is None:
            return False
        digest = bytes.fromhex(found[0])
        if not sink.matches(window, digest):
            return False
        counts = Counts.from_json(found[1])
        self._record(candidate, window.output, window.block, digest, counts)
        return True

    def _record(
        self, candidate: int, output: int, block: int, digest: bytes, counts: Counts
    ) -> None:
        with self._lock:
            self._counts[candidate].update(counts)
            self._digests[candidate][output][block] = digest

    def _advance(self, nbytes: int) -> None:
        with self._lock:
            self._reached(self._done + nbytes)

    def _reached(self, nbytes: int) -> None:
        self._done = min(nbytes, self._total)
        if self.progress is not None:
            self.progress(self._done, self._total)

    def outcomes(self) -> list[Outcome]:
        return [
            Outcome(counts, tuple(root_digest(blocks) for blocks in digests))
            for counts, digests in zip(self._counts, self._digests, strict=True)
        ]


def _block(output: int, block: int, size: int) -> Window:
    """A block of an output file of ``size`` bytes, whatever is in it."""
    return Window(output, block, block * BLOCK, min(BLOCK, size - block * BLOCK), ())


@contextlib.contextmanager
def _numpy_meanwhile() -> Iterator[None]:
    """Import numpy, which evaluates the sample at the end, while the engine is at work."""
    thread = threading.Thread(target=importlib.import_module, args=("numpy",))
    thread.start()
    try:
        yield
    finally:
        thread.join()


def blocks_together(plan: Plan, *, cached: bool, native: bool | None = None) -> int:
    """Blocks that the engine reads and writes at once. cached: all inputs are in the page cache.

    native: as for ``affordable``.
    """
    if cached or affordable(plan, 1, _COLD_BLOCKS, native=native)[1] > _MEMORY:
        return 1
    return _COLD_BLOCKS


def affordable(
    plan: Plan, threads: int, together: int = 1, *, native: bool | None = None
) -> tuple[int, int]:
    """``threads``, or fewer when their memory would be too much, and bytes of memory for each.

    together: blocks that the engine has in memory at once. native: whether it is the engine that
    carries ``plan`` out; None: where it can.
    """
    if serves(plan, BLOCK) if native is None else native:
        each = int(memory(plan, together, BLOCK))
    else:
        largest = max(map(_input_bytes, plan.segments), default=1.0)
        # Each input begins and ends within pages.
        each = int(BLOCK * (1 + largest)) + 3 * ALIGN * (2 + plan.max_terms)
    each = -(-each // _LARGE_PAGE) * _LARGE_PAGE
    return max(1, min(threads, _MEMORY // each)), each


def _input_bytes(segment: Segment) -> float:
    """Bytes in memory of what one byte of output is made from."""
    if not segment.nbytes or segment.operation == "copy":
        return 1.0
    low_rank = sum(isinstance(term.values, LowRankRange) for term in segment.terms)
    return (bytes_per_count(segment) + 4 * low_rank) / segment.dtype.size


def allow_open_files(count: int) -> None:
    """Raise the soft limit of open files as far as the system allows, if it is too low."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + 64
    if soft != resource.RLIM_INFINITY and soft < wanted:
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, limit), hard))


def nonfinite_tensors(plan: Plan, counts: Counts) -> Counter[str]:
    """Non-finite values by tensor's name."""
    found: Counter[str] = Counter()
    for number, count in counts.nonfinite.items():
        found[plan.segments[number].tensor] += count
    return found
