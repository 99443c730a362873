"""Inputs in processes of their own, so that a crash or a hang is a finding and not the end.

Input i of seed s is always the same, whatever the number of processes.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from bench.fuzzing import headers, indexes
from bench.fuzzing.outcome import FAILURE, Outcome, Watch

KINDS: dict[str, Any] = {"headers": headers, "indexes": indexes}
# A process reports this often, and one that has been silent for so long over its limit is killed.
REPORT, GRACE = 0.2, 10.0
# A run ends when it has found so much; an input that ends its process takes long to make smaller.
MOST_FAILURES, MOST_ENDS = 20, 4
_SPAWN = multiprocessing.get_context("spawn")


@dataclass(frozen=True)
class Job:
    """Inputs ``first``, ``first + step``, … below ``stop``, without ``skip``.

    limit: seconds for one input. shrink: seconds to spend on making a failing one smaller.
    subject: ``module:function`` of a reader to test in avops's place.
    """

    kind: str
    seed: int
    first: int
    stop: int
    step: int = 1
    limit: float = 2.0
    shrink: float = 20.0
    subject: str = ""
    skip: frozenset[int] = frozenset()

    def make(self, number: int) -> bytes:
        """Input ``number``."""
        generate: Callable[[random.Random], bytes] = KINDS[self.kind].generate
        return generate(random.Random((self.seed << 40) + number))


class Failure(NamedTuple):
    """An input that failed. raw: the smaller one that was found."""

    number: int
    reason: str
    raw: bytes


class _TimeUp(BaseException):
    """Not an Exception, so that nobody catches it on the way."""


def _interrupt(_signum: int, _frame: FrameType | None) -> None:
    raise _TimeUp


@contextmanager
def place(kind: str) -> Iterator[Path]:
    """Where inputs of ``kind`` are written: memory, if the system offers it."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as root:
        yield KINDS[kind].prepare(Path(root))


class Checker:
    """Runs inputs of ``job`` one by one, each within its time, in the directory ``place``."""

    def __init__(self, job: Job, place: Path, watch: Watch | None = None) -> None:
        self._job, self._place, self._watch = job, place, watch
        module, _, name = job.subject.partition(":")
        self._reader = getattr(importlib.import_module(module), name) if module else None

    def __call__(self, raw: bytes) -> Outcome:
        check = KINDS[self._job.kind].check
        before = signal.signal(signal.SIGALRM, _interrupt)
        try:
            signal.setitimer(signal.ITIMER_REAL, self._job.limit)
            try:
                outcome: Outcome = check(raw, self._place, self._reader, self._watch)
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        except _TimeUp:
            return Outcome(FAILURE, f"took longer than {self._job.limit:g} s")
        finally:
            signal.signal(signal.SIGALRM, before)
        return outcome


def minimise(job: Job, raw: bytes, fails: Callable[[bytes], bool]) -> bytes:
    """A smaller input of which ``fails`` is still true, as small as ``job.shrink`` allows."""
    end = time.monotonic() + job.shrink
    smaller: bytes = KINDS[job.kind].minimise(
        raw, lambda some: time.monotonic() < end and fails(some)
    )
    return smaller


def _work(job: Job, pipe: Connection, at: Any) -> None:
    """A process's whole life: sends (next input, tally) and failures.

    at: the input that it is at, and how often it has tried to make it smaller.
    """
    tally: Counter[Outcome] = Counter()
    with place(job.kind) as directory:
        checker = Checker(job, directory, Watch())
        last = time.monotonic()
        for number in range(job.first, job.stop, job.step):
            if number in job.skip:
                continue
            at[:] = number, 0
            raw = job.make(number)
            outcome = checker(raw)
            tally[outcome] += 1
            if outcome.verdict == FAILURE:

                def fails(some: bytes, wanted: Outcome = outcome) -> bool:
                    at[1] += 1
                    return checker(some) == wanted

                pipe.send(Failure(number, outcome.reason, minimise(job, raw, fails)))
            if time.monotonic() - last > REPORT:
                pipe.send((number + job.step, tally))
                tally, last = Counter(), time.monotonic()
        pipe.send((job.stop, tally))


def _probe(job: Job, raw: bytes) -> None:
    """A process that meets one input; what it says as it ends has been said before."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    with place(job.kind) as directory:
        Checker(job, directory)(raw)


def _dies(job: Job, raw: bytes) -> bool:
    """Whether a process that meets ``raw`` crashes or hangs."""
    process = _SPAWN.Process(target=_probe, args=(job, raw), daemon=True)
    process.start()
    process.join(job.limit + GRACE)
    if process.exitcode is None:
        process.kill()
        process.join()
    return process.exitcode != 0


class _Runner:
    """One process at a time for a job, started again behind an input that ended it."""

    def __init__(self, job: Job) -> None:
        self.job, self.done = job, False
        self._start()

    def _start(self) -> None:
        self.pipe, theirs = _SPAWN.Pipe(duplex=False)
        self._at = _SPAWN.Array("q", [-1, 0])
        self._seen, self._since = [-1, 0], time.monotonic()
        work = (self.job, theirs, self._at)
        self.process = _SPAWN.Process(target=_work, args=work, daemon=True)
        self.process.start()
        theirs.close()

    def receive(self) -> Iterator[Counter[Outcome] | Failure]:
        """What has arrived. Afterwards ``done`` says whether more can come."""
        why = self._ended()
        # What it sent before it ended comes first.
        try:
            while self.pipe.poll():
                message = self.pipe.recv()
                if isinstance(message, Failure):
                    yield message
                else:
                    following, tally = message
                    self.job = replace(self.job, first=following)
                    yield tally
        except EOFError:
            pass
        if self.job.first >= self.job.stop:
            self.process.join()
            self.done = True
            return
        if why:
            yield Counter({Outcome(FAILURE, why): 1})
            yield self._fallen(why)

    def _ended(self) -> str:
        """Why the process is no longer at work; empty while it is."""
        if self._at[:] != self._seen:
            self._seen, self._since = self._at[:], time.monotonic()
        if time.monotonic() - self._since > self.job.limit + GRACE:
            self.process.kill()
            self.process.join()
            return f"hung for {self.job.limit + GRACE:g} s"
        if self.process.exitcode is not None:
            code = self.process.exitcode
            return f"ended the process ({signal.Signals(-code).name if code < 0 else code})"
        return ""

    def _fallen(self, why: str) -> Failure:
        number = self._at[0]
        if number < 0:
            raise SystemExit(f"a fuzzing process could not start ({why})")
        raw = self.job.make(number)
        smaller = minimise(self.job, raw, lambda some: _dies(self.job, some))
        self.job = replace(self.job, skip=self.job.skip | {number})
        self._start()
        return Failure(number, why, smaller)

    def stop(self) -> None:
        self.process.kill()
        self.process.join()


def _enough(failures: list[Failure], runners: list[_Runner]) -> bool:
    ends = sum(len(runner.job.skip) for runner in runners)
    return len(failures) >= MOST_FAILURES or ends >= MOST_ENDS


def run(
    job: Job, jobs: int, progress: Callable[[int], None]
) -> tuple[Counter[Outcome], list[Failure]]:
    """Every input of ``job`` in ``jobs`` processes: how often each outcome, and the failures.

    progress: told how many inputs are done. Stops after MOST_FAILURES failures.
    """
    tally: Counter[Outcome] = Counter()
    failures: list[Failure] = []
    runners = [_Runner(replace(job, first=job.first + i, step=jobs)) for i in range(jobs)]
    try:
        while not all(runner.done for runner in runners) and not _enough(failures, runners):
            wait([runner.pipe for runner in runners if not runner.done], timeout=1.0)
            for runner in runners:
                for news in () if runner.done else runner.receive():
                    if isinstance(news, Failure):
                        failures.append(news)
                    else:
                        tally += news
            progress(tally.total())
    finally:
        for runner in runners:
            runner.stop()
    return tally, failures
