"""Workers as Ray actors: the same measurers on any Ray cluster.

Every node must see the same files under the same paths. Nothing is reported to anybody: usage
statistics and the dashboard stay off.
"""

from __future__ import annotations

import contextlib
import time
from typing import Any

from avops import env
from avops.errors import AvopsError, MissingExtraError, UserError
from avops.search.fanout.worker import LostWorker, Maker, Patience, hangs
from avops.search.points import Job, Outcome, Place

LOCAL = "local"
"""The address that stands for a cluster on this machine, for the length of the run."""


class RayCluster:
    """A connection to a cluster, from ``open`` to ``close``."""

    def __init__(self, ray: Any, *, ours: bool) -> None:
        self.ray = ray
        self._ours = ours

    @classmethod
    def open(cls, address: str, *, cpus: int | None = None) -> RayCluster:
        """Connect to ``address``, or start a cluster here for ``local``.

        Raises MissingExtraError without ray, UserError where nothing answers.
        """
        env.no_ray_reports()
        try:
            import ray
        except ModuleNotFoundError as error:
            raise MissingExtraError("ray", "ray", "--ray") from error
        if ray.is_initialized():
            return cls(ray, ours=False)
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
        if address == LOCAL:
            options |= {"include_dashboard": False, "num_cpus": cpus, "address": "local"}
        else:
            options |= {"address": address}
        try:
            ray.init(**options)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise UserError(
                f"--ray {address}: no cluster answers: {str(error).splitlines()[0]}; "
                "start one with `ray start --head`, or give --ray without an address"
            ) from error
        return cls(ray, ours=True)

    def workers(self, maker: Maker, count: int | None) -> list[RayWorker]:
        """``count`` workers: by default one for each GPU, else for each node."""
        resources = self.ray.cluster_resources()
        gpus = int(resources.get("GPU", 0))
        cpus = max(1, int(resources.get("CPU", 1)))
        nodes = sum(bool(node.get("Alive")) for node in self.ray.nodes())
        count = count or gpus or max(1, nodes)
        share = max(1, cpus // count)
        gpu = min(1.0, gpus / count)
        if gpus and gpu < 1:
            gpu = 1 / -(-count // gpus)
        needs = {"num_gpus": gpu, "num_cpus": min(share, cpus / count)}
        device = "cuda:0" if gpus else "cpu"
        return [
            RayWorker(self.ray, maker, Place(number, device, None if gpus else share), needs)
            for number in range(count)
        ]

    def close(self) -> None:
        """Leave the cluster, and end it if it was started here."""
        if self._ours:
            self.ray.shutdown()


class RayWorker:
    """A measurer in an actor."""

    def __init__(self, ray: Any, maker: Maker, place: Place, needs: dict[str, Any]) -> None:
        self.place = place
        self._ray, self._maker, self._needs = ray, maker, needs
        self._actor: Any = None
        self._stopped = False
        self._patience = Patience()

    def start(self) -> str:
        """See Worker: the cluster places the actor where its needs are met."""
        self._kill()
        if self._stopped:
            raise LostWorker("the run has ended")
        made = self._ray.remote(max_restarts=0, max_task_retries=0, **self._needs)(_Actor)
        self._actor = made.remote(self._maker, self.place)
        return str(self._get(self._actor.start.remote()))

    def measure(self, job: Job) -> Outcome:
        """See Worker."""
        begin = time.monotonic()
        found: Outcome = self._get(self._actor.measure.remote(job), self._patience.bound(job))
        self._patience.took(job, time.monotonic() - begin)
        return found

    def stop(self) -> None:
        """See Worker."""
        self._stopped = True
        self._kill()

    def _kill(self) -> None:
        actor, self._actor = self._actor, None
        if actor is None:
            return
        # RayError: the cluster is gone, and the actor with it, or it was of an earlier session.
        # A dead actor is killed again without a word.
        with contextlib.suppress(self._ray.exceptions.RayError):
            self._ray.kill(actor)

    def _get(self, reference: Any, within: float | None = None) -> Any:
        errors = self._ray.exceptions
        try:
            return self._ray.get(reference, timeout=within)
        except errors.GetTimeoutError as error:
            raise LostWorker(hangs(within or 0.0)) from error
        except errors.RayTaskError as error:
            cause = error.cause
            if isinstance(cause, AvopsError):
                raise cause from None
            raise AvopsError(f"worker {self.place.number}: {cause!r}") from error
        except errors.RayError as error:
            lines = str(error).strip().splitlines()
            # Of an actor that could not be made, the last line is the reason.
            raise LostWorker(lines[-1 if "creation task" in lines[0] else 0]) from error


class _Actor:
    """The actor: a measurer and its digest."""

    def __init__(self, maker: Maker, place: Place) -> None:
        self._maker, self._place = maker, place

    def start(self) -> str:
        """Make and load the measurer."""
        self._measurer = self._maker.make(self._place)
        self._measurer.load()
        return self._measurer.digest

    def measure(self, job: Job) -> Outcome:
        """The outcome of ``job``."""
        return self._measurer.evaluate(job)
