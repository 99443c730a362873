"""Tensors combined on the CPU, straight from the mapped files, by the native kernel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from avops import env
from avops.dtypes import DType
from avops.kernels import Dither, Operand, Term, combine
from avops.knobs.mapped import MappedVector
from avops.knobs.residency import Choice
from avops.knobs.site import NONFINITE, Inputs, Told
from avops.knobs.targets import Target

if TYPE_CHECKING:
    import torch

Counts = tuple[int, int, int, int]


class HostSite:
    """Targets that are combined on the host; those of another device, or wider, are copied there.

    The files stay in the page cache, where merge and every other process share them.
    """

    def __init__(
        self,
        device: torch.device,
        numbers: Sequence[int],
        targets: Sequence[Target],
        inputs: Inputs,
    ) -> None:
        self.device, self.numbers = device, tuple(numbers)
        self._targets, self._inputs = tuple(targets), inputs
        reason = "combined on the CPU, in place from the page cache"
        if device.type != "cpu":
            reason = f"no kernel reaches {device}: combined on the CPU, then copied"
        self.choice = Choice("disk", reason)
        self.total = sum(target.base.nbytes for target in self._targets)
        self._told: Told | None = None
        self._staging: dict[DType, np.ndarray] = {}
        self._rows = np.zeros((len(self._targets), len(inputs.vectors)), np.float32)

    def load(self, told: Told) -> None:
        """Map the files. They are read when λ is set first."""
        self.check()
        self._told = told

    def check(self) -> None:
        """Raise CheckpointError when a file was changed."""
        self._inputs.check()

    def start(self, rows: np.ndarray) -> None:
        """Keep the coefficients: a device's work goes first."""
        self._rows = rows

    def finish(self) -> np.ndarray:
        """Write every target."""
        counts = np.zeros((len(self._targets), 4), np.int64)
        done = 0
        self._wait()
        for number, target in enumerate(self._targets):
            counts[number] = self._write(target, self._rows[number])
            done += target.base.nbytes
            if self._told is not None:
                self._told(done)
        self._told = None
        self._wait()
        self.check()
        return counts

    def _wait(self) -> None:
        """Wait for a device: forwards may be running on any of its streams."""
        import torch

        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)

    def _write(self, target: Target, lams: np.ndarray) -> Counts:
        import torch

        dtype, count = target.dtype, target.base.count
        if not count:
            return 0, 0, 0, 0
        direct = target.tensor.device.type == "cpu" and target.direct
        if direct:
            raw = target.tensor.detach().view(-1).view(torch.uint8).numpy()
        else:
            raw = self._buffer(dtype, count)[: count * dtype.size]
        base = self._inputs.base.operands[target.name]
        dials = [
            (vector, float(lam))
            for vector, lam in zip(self._inputs.vectors, lams, strict=True)
            if lam and target.name in vector
        ]
        counts = _combine(target, base, dials, Operand(raw.view(dtype.storage), dtype))
        if counts[NONFINITE] and not dials and target.kept:
            raw[:] = base.array.view(np.uint8)  # A NaN keeps its sign and payload.
        if not direct:
            host = torch.from_numpy(raw).view(getattr(torch, dtype.torch or ""))
            target.tensor.copy_(host.view(target.tensor.shape))
        return counts

    def _buffer(self, dtype: DType, count: int) -> np.ndarray:
        """Memory for one target, allocated once."""
        if dtype not in self._staging:
            largest = max(t.base.count for t in self._targets if t.dtype == dtype)
            self._staging[dtype] = np.empty(largest * dtype.size, np.uint8)
        return self._staging[dtype][: count * dtype.size]


def _combine(
    target: Target, base: Operand, dials: list[tuple[MappedVector, float]], out: Operand
) -> Counts:
    """θ(λ) of one tensor: whole, or in pieces where differences are computed on the way."""
    name, count, threads = target.name, base.array.size, env.threads()
    piece = min((av.chunk for av, _ in dials if av.low_rank(name)), default=max(count, 1))
    total = np.zeros(4, np.int64)
    for start in range(0, count, piece):
        size = min(piece, count - start)
        end = start + size
        terms = [
            Term(av.values(name, start, size, threads=threads), lam, av.aligned(name))
            for av, lam in dials
        ]
        stats = combine(
            Operand(base.array[start:end], base.dtype),
            terms,
            Operand(out.array[start:end], out.dtype),
            rounding=None if target.key is None else Dither(target.key, start),
            threads=threads,
        )
        total += (stats.nonfinite, stats.unchanged, stats.overflowed, stats.flushed)
    nonfinite, unchanged, overflowed, flushed = map(int, total)
    return nonfinite, unchanged, overflowed, flushed
