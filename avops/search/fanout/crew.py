"""A crew: workers that take jobs from one queue, a thread waiting beside each.

What they finish comes back as events in the order of arrival. A worker that dies is made anew and
its job measured again; a job during which workers die again and again is an error.
"""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from avops.errors import AvopsError
from avops.search.fanout.worker import LostWorker, Worker

if TYPE_CHECKING:
    from avops.search.points import Job, Outcome

ATTEMPTS = 3
"""Workers that one job may cost."""


@dataclass(frozen=True)
class Lost:
    """A worker died: which, of what, with which job in hand."""

    worker: int
    reason: str
    job: Job | None


@dataclass(frozen=True)
class Failed:
    """A worker met an error."""

    error: BaseException


@dataclass(frozen=True)
class Woken:
    """Something else happened that is worth a look."""


class Crew:
    """Workers behind one queue of jobs.

    digest: what every worker's measurer must have. busy: seconds that workers measured. idle:
    seconds that started workers had nothing to do.
    """

    def __init__(self, workers: Sequence[Worker], digest: str) -> None:
        self._workers = tuple(workers)
        self._digest = digest
        self._jobs: deque[Job] = deque()
        self._ready = threading.Condition()
        self._closed = False
        self.events: queue.SimpleQueue[Outcome | Lost | Failed | Woken] = queue.SimpleQueue()
        self.busy = self.idle = 0.0
        self._running = 0
        self._threads = [
            threading.Thread(target=self._serve, args=(worker,), daemon=True, name=f"avops {n}")
            for n, worker in enumerate(self._workers)
        ]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def size(self) -> int:
        """How many workers."""
        return len(self._workers)

    @property
    def running(self) -> int:
        """How many jobs are in workers' hands; 0 only when all they gave is among the events."""
        with self._ready:
            return self._running

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queue ``jobs``, after those that wait."""
        with self._ready:
            self._jobs.extend(jobs)
            self._ready.notify_all()

    def withdraw(self) -> tuple[Job, ...]:
        """Take back what no worker has begun."""
        with self._ready:
            left = tuple(self._jobs)
            self._jobs.clear()
            return left

    def wake(self) -> None:
        """Put an event among the others, from any thread."""
        self.events.put(Woken())

    def close(self) -> None:
        """End all workers now; what they have in hand is lost."""
        with self._ready:
            self._closed = True
            self._jobs.clear()
            self._ready.notify_all()
        for worker in self._workers:
            worker.stop()
        for thread in self._threads:
            thread.join(timeout=10)

    def _serve(self, worker: Worker) -> None:
        """A worker's thread: job after job, until the crew is closed or an error ends it."""
        try:
            self._begin(worker)
            while (job := self._next()) is not None:
                self._measure(worker, job)
        except BaseException as error:
            if not self._closed:
                self.events.put(Failed(error))

    def _begin(self, worker: Worker, job: Job | None = None, deaths: int = 0) -> None:
        """Start ``worker``, anew if it dies meanwhile."""
        while True:
            try:
                self._check(worker.start(), worker)
                return
            except LostWorker as error:  # noqa: PERF203
                deaths += 1
                self._mourn(worker, job, deaths, error)

    def _measure(self, worker: Worker, job: Job) -> None:
        for deaths in itertools.count(1):
            begin = time.perf_counter()
            try:
                outcome = worker.measure(job)
                self._finished(outcome, time.perf_counter() - begin)
                return
            except LostWorker as error:
                self._mourn(worker, job, deaths, error)
                self._begin(worker, job, deaths)

    def _mourn(self, worker: Worker, job: Job | None, deaths: int, error: LostWorker) -> None:
        number = worker.place.number
        if not self._closed:
            self.events.put(Lost(number, str(error), job))
        if self._closed or deaths >= ATTEMPTS:
            what = "before it could begin" if job is None else f"at {job.point} ({job.split})"
            raise AvopsError(
                f"worker {number}: it died {deaths} times {what}: {error}; what was measured is "
                "kept: see whether memory runs out, and run the same command again"
            ) from error

    def _next(self) -> Job | None:
        begin = time.perf_counter()
        with self._ready:
            while not self._jobs and not self._closed:
                self._ready.wait()
            self.idle += time.perf_counter() - begin
            if self._closed:
                return None
            self._running += 1
            return self._jobs.popleft()

    def _finished(self, outcome: Outcome, seconds: float) -> None:
        with self._ready:
            self.busy += seconds
            self._running -= 1
            self.events.put(outcome)

    def _check(self, digest: str, worker: Worker) -> None:
        if digest != self._digest:
            raise AvopsError(
                f"worker {worker.place.number}: it reads other items or tokens "
                f"({digest[:12]}…, expected {self._digest[:12]}…); give every worker the same files"
            )
