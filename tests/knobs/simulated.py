"""A device on the CPU: queues that run as late, or in as odd an order, as a real one might.

What is given to a queue runs when somebody must have it (``late``: kernels before copies, or
``copies first``), at random moments (a seed), or at once. So a missing wait shows as wrong weights.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch

from avops.knobs import lanes
from avops.knobs.lanes import COPIES, KERNELS


@dataclass
class Event:
    recorded: int = 0
    over: int = 0


@dataclass
class Step:
    """``run`` something; ``blocked`` until an event is over."""

    run: Callable[[], None]
    blocked: Callable[[], bool] = lambda: False


class Simulated:
    """A lane over CPU tensors. order: ``late``, ``copies first``, ``at once``, or a seed."""

    def __init__(self, order: str | int = "late", *, free: int = 1 << 40) -> None:
        self.device = torch.device("cpu")
        self._free = free
        self._order = order
        self._random = random.Random(order if isinstance(order, int) else 0)
        self._queues: dict[str, deque[Step]] = {COPIES: deque(), KERNELS: deque()}
        self.copied = 0
        self.begun = 0
        self.deaf = False  # Waits are ignored: for tests of the tests.
        self.fails: Callable[[str], None] = lambda _: None

    def room(self) -> tuple[int, int]:
        return self._free, self._free

    def device_memory(self, nbytes: int) -> torch.Tensor:
        return torch.full((nbytes,), 0xA5, dtype=torch.uint8)

    def host_memory(self, nbytes: int) -> torch.Tensor:
        return torch.full((nbytes,), 0x5A, dtype=torch.uint8)

    def event(self) -> Event:
        return Event()

    def check(self) -> None:
        pass

    def begin(self) -> None:
        self.fails("begin")
        self.begun += 1
        self.finish()

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        self.fails("copy")

        def run() -> None:
            target.copy_(source)
            self.copied += source.numel()

        self._give(COPIES, Step(run))

    def compute(self, work: Callable[[], None]) -> None:
        self.fails("compute")

        self._give(KERNELS, Step(work))

    def record(self, event: Event, queue: str) -> None:
        event.recorded += 1
        ticket = event.recorded

        def run() -> None:
            event.over = max(event.over, ticket)

        self._give(queue, Step(run))

    def after(self, queue: str, event: Event) -> None:
        ticket = event.recorded
        if not self.deaf:
            self._give(queue, Step(lambda: None, lambda: event.over < ticket))

    def wait(self, event: Event) -> None:
        ticket = event.recorded
        while event.over < ticket and not self.deaf:
            self._step()

    def finish(self) -> None:
        while any(self._queues.values()):
            self._step()

    def _give(self, queue: str, step: Step) -> None:
        self._queues[queue].append(step)
        if self._order == "at once":
            self.finish()
        elif isinstance(self._order, int):
            for _ in range(self._random.randrange(4)):
                if any(self._queues.values()):
                    self._step()

    def _step(self) -> None:
        """Run one step of a queue that is not blocked."""
        names = [COPIES, KERNELS] if self._order == "copies first" else [KERNELS, COPIES]
        if isinstance(self._order, int):
            self._random.shuffle(names)
        for name in names:
            queue = self._queues[name]
            if queue and not queue[0].blocked():
                queue.popleft().run()
                return
        raise AssertionError("both queues wait for each other")


def use(monkeypatch: pytest.MonkeyPatch, lane: Simulated) -> Simulated:
    """Let ``lane`` serve the models on the CPU."""
    monkeypatch.setattr(lanes, "lane_of", lambda _device: lane)
    return lane
