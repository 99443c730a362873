"""A worker in this process: one model, beside the planner."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from avops.search.points import Job, Outcome, Place

if TYPE_CHECKING:
    from avops.search.fanout.worker import Measurer


class LocalWorker:
    """A measurer that this process holds already."""

    def __init__(self, measurer: Measurer, place: Place | None = None) -> None:
        self.place = place or Place()
        self._measurer = measurer
        self._stopped = threading.Event()

    def start(self) -> str:
        """See Worker."""
        self._measurer.load()
        return self._measurer.digest

    def measure(self, job: Job) -> Outcome:
        """See Worker."""
        return self._measurer.evaluate(job, self._stopped.is_set)

    def stop(self) -> None:
        """See Worker: after the forward pass at work."""
        self._stopped.set()
