"""The coefficients' way to the device: no allocation and no waiting in a run."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

# Runs under way at one time; one more waits for the oldest of them.
SLOTS = 16


class HostLams:
    """For the interpreter, which reads the host's memory and is done when it returns."""

    def __init__(self, shape: tuple[int, int], _device: torch.device) -> None:
        import torch

        self._lams = torch.zeros(max(1, math.prod(shape)), dtype=torch.float32)

    @contextlib.contextmanager
    def ready(self, lams: np.ndarray, _used: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Where the kernels find ``lams``, with numpy quiet about their NaNs and overflows."""
        self._lams.numpy()[: lams.size] = lams.ravel()
        with np.errstate(all="ignore"):
            yield self._lams

    def wait(self) -> None:
        """Until the last run is over: it is."""


class DeviceLams:
    """Slots in pinned memory and on the device, taken in turn.

    A slot is written again only when the run that had it is over, on whatever stream it was.
    """

    def __init__(self, shape: tuple[int, int], device: torch.device) -> None:
        import torch

        self._device = device
        # Slots of whole 16 bytes: Triton compiles anew for addresses that are less even.
        slots = (SLOTS, max(4, -(-math.prod(shape) // 4) * 4))
        self._here = torch.zeros(slots, dtype=torch.float32, device="cpu", pin_memory=True)
        # A copy that is waited for: the first run may be on another stream than this.
        self._there = torch.zeros(slots, dtype=torch.float32, device="cpu").to(device)
        self._over = [torch.cuda.Event() for _ in range(SLOTS)]  # type: ignore[no-untyped-call]
        self._streams = {torch.cuda.current_stream(device).cuda_stream}
        self._last = 0

    @contextlib.contextmanager
    def ready(self, lams: np.ndarray, used: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Where the kernels of this block, on the current stream, find ``lams``.

        used: the other memory that they use; kept from reuse until the stream is through with it.
        """
        import torch

        slot = self._last = (self._last + 1) % SLOTS
        self._over[slot].synchronize()
        self._here[slot].numpy()[: lams.size] = lams.ravel()
        with torch.cuda.device(self._device):
            stream = torch.cuda.current_stream()
            if stream.cuda_stream not in self._streams:
                self._streams.add(stream.cuda_stream)
                for tensor in (self._there, *used):
                    tensor.record_stream(stream)
            try:
                self._there[slot].copy_(self._here[slot], non_blocking=True)
                yield self._there[slot]
            finally:
                self._over[slot].record(stream)

    def wait(self) -> None:
        """Until the last run is over."""
        self._over[self._last].synchronize()
