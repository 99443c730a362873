"""Workers in processes of their own on this machine, one model each.

Each is started anew rather than forked: CUDA and threads do not survive a fork. The checkpoint's
pages are in the page cache once for all of them.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import time
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from avops.errors import AvopsError
from avops.search.fanout.worker import LostWorker, Maker, Patience, WorkerError, hangs
from avops.search.points import Job, Outcome, Place

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

_PATIENCE = 5.0
"""Seconds that a process has to end by itself."""


class ProcessWorker:
    """A measurer in a process."""

    def __init__(self, maker: Maker, place: Place) -> None:
        self.place = place
        self._maker = maker
        self._process: BaseProcess | None = None
        self._pipe: Connection | None = None
        self._stopped = False
        self._patience = Patience()

    @property
    def pid(self) -> int | None:
        """The process's number while there is one."""
        return None if self._process is None else self._process.pid

    def start(self) -> str:
        """See Worker."""
        self._end()
        if self._stopped:
            raise LostWorker("the run has ended")
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, self._maker, self.place), daemon=True
        )
        self._process.start()
        theirs.close()
        if self._stopped:  # while it began
            self._process.kill()
        return str(self._answer())

    def measure(self, job: Job) -> Outcome:
        """See Worker."""
        assert self._pipe is not None
        begin = time.monotonic()
        try:
            self._pipe.send(job)
        except OSError as error:
            raise LostWorker(self._death(error)) from error
        found: Outcome = self._answer(self._patience.bound(job))
        self._patience.took(job, time.monotonic() - begin)
        return found

    def stop(self) -> None:
        """See Worker."""
        self._stopped = True
        process = self._process  # the worker's own thread may replace it meanwhile
        if process is not None:
            # AttributeError: it is being started at this moment, and ``start`` ends it.
            with contextlib.suppress(ValueError, OSError, AttributeError):
                process.kill()

    def _answer(self, within: float | None = None) -> Any:
        """What the process says. Raises LostWorker where it ends, or not ``within`` seconds."""
        assert self._pipe is not None
        try:
            if not self._pipe.poll(within):
                raise LostWorker(hangs(within or 0.0))
            kind, value = self._pipe.recv()
        except (EOFError, OSError) as error:
            raise LostWorker(self._death(error)) from error
        if kind == "error":
            raise value
        return value

    def _death(self, error: BaseException) -> str:
        process = self._process
        if process is None:
            return str(error) or type(error).__name__
        process.join(_PATIENCE)
        code = process.exitcode
        if code is not None and code < 0:
            with contextlib.suppress(ValueError):
                return f"killed by {signal.Signals(-code).name}"
        return f"exit code {code}"

    def _end(self) -> None:
        if self._pipe is not None:
            self._pipe.close()
        if self._process is not None:
            self._process.kill()
            self._process.join(_PATIENCE)
        self._pipe = self._process = None


def _serve(pipe: Connection, maker: Maker, place: Place) -> None:
    """The process: measures what comes through the pipe, until that closes."""
    # Ctrl-C goes to every process of a terminal; the first one decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(OSError, EOFError):
        try:
            measurer = maker.make(place)
            measurer.load()
            pipe.send(("ready", measurer.digest))
            while True:
                pipe.send(("outcome", measurer.evaluate(pipe.recv())))
        except AvopsError as error:
            pipe.send(("error", error))
        except (EOFError, OSError):
            raise
        except Exception as error:
            text = f"worker {place.number}: {type(error).__name__}: {error}"
            pipe.send(("error", WorkerError(text)))
