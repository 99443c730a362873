"""A device's time and memory: medians of events, after warming up; the wall clock on the CPU."""

from __future__ import annotations

import gc
import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Timed:
    """Seconds of single runs."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def figures(self) -> dict[str, float | int]:
        low, high = min(self.seconds), max(self.seconds)
        return {"median_s": self.median, "min_s": low, "max_s": high, "runs": len(self.seconds)}


def timed(work: Callable[[], object], device: torch.device, *, runs: int = 15) -> Timed:
    """The seconds of ``work()`` on ``device``. Its data must be far larger than the caches.

    On a GPU runs are queued one behind the other: what the host does for a run is counted only as
    far as the device waits for it.
    """
    for _ in range(3):
        work()
    wait(device)
    if device.type != "cuda":
        return Timed(tuple(_once(work) for _ in range(runs)))
    events = [torch.cuda.Event(enable_timing=True) for _ in range(runs + 1)]
    events[0].record()
    for event in events[1:]:
        work()
        event.record()
    wait(device)
    pairs = itertools.pairwise(events)
    return Timed(tuple(float(before.elapsed_time(after)) / 1e3 for before, after in pairs))


def _once(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def clocked(work: Callable[[], object], device: torch.device, *, runs: int = 5) -> Timed:
    """Seconds by the host's clock, the device waited for: for work that the host drives."""
    work()
    wait(device)
    found = []
    for _ in range(runs):
        start = time.perf_counter()
        work()
        wait(device)
        found.append(time.perf_counter() - start)
    return Timed(tuple(found))


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def name_of(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "none"


def allocated(device: torch.device) -> int:
    """Bytes ever handed out by torch's allocator: unchanged means that nothing was allocated."""
    if device.type != "cuda":
        return 0
    return int(torch.cuda.memory_stats(device)["allocated_bytes.all.allocated"])


def forget(device: torch.device) -> None:
    """Give back what is no longer used, and measure the peak from here on."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak(device: torch.device) -> int | None:
    """Bytes that tensors took at most since ``forget``; None on the CPU."""
    return int(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else None
