"""combine_many by the reference backends of combine and lowrank, on the host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from avops.dtypes import F32, DType
from avops.kernels.combine import combine
from avops.kernels.lowrank import Factors, lowrank
from avops.kernels.many.checks import dtype_of
from avops.kernels.many.entries import Entry, LowRank, Values
from avops.kernels.operands import Dither, Operand, Term

if TYPE_CHECKING:
    import torch


def available() -> tuple[bool, str]:
    """Always; tensors of another device are copied to the host and back."""
    return True, "numpy, through copies on the host"


def run(entries: Sequence[Entry], device: torch.device) -> Prepared:  # noqa: ARG001 - any device
    """The table of ``entries``, ready to run."""
    return Prepared(entries)


class Prepared:
    """Entries and the counts of their last run."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self._entries = entries
        self._counts = [(0, 0, 0, 0)] * len(entries)

    def run(self, lams: np.ndarray) -> None:
        """Write every out. lams: f32 [entries, terms]."""
        for number, (entry, row) in enumerate(zip(self._entries, lams, strict=True)):
            self._counts[number] = _combine(entry, row)

    def counts(self) -> list[tuple[int, int, int, int]]:
        """(nonfinite, unchanged, overflowed, flushed) of each entry."""
        return list(self._counts)


def _combine(entry: Entry, lams: np.ndarray) -> tuple[int, int, int, int]:
    terms = [
        _term(part, float(lam))
        for part, lam in zip(entry.parts, lams, strict=True)
        if part is not None and lam != 0
    ]
    base = _host(entry.base)
    out = Operand(np.empty_like(_host(entry.out).array), _dtype(entry.out))
    rounding = None if entry.key is None else Dither(entry.key, 0)
    stats = combine(base, terms, out, rounding=rounding, backend="reference")
    _write(out, entry.out)
    return stats.nonfinite, stats.unchanged, stats.overflowed, stats.flushed


def _term(part: Values | LowRank, lam: float) -> Term:
    if isinstance(part, Values):
        return Term(_host(part.tensor), lam, part.aligned)
    left, right = (
        np.ascontiguousarray(side.detach().cpu().numpy()) for side in (part.left, part.right)
    )
    delta = Operand(np.empty(left.shape[0] * right.shape[1], np.float32), F32)
    lowrank(Factors(left, right, part.scale), 0, delta, backend="reference")
    return Term(delta, lam, False)


def _host(tensor: torch.Tensor) -> Operand:
    import torch

    dtype = _dtype(tensor)
    raw = tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy()
    return Operand(raw.view(dtype.storage), dtype)


def _write(values: Operand, out: torch.Tensor) -> None:
    import torch

    host = torch.from_numpy(values.array.view(np.uint8)).view(out.dtype).view(out.shape)
    with torch.no_grad():
        out.copy_(host)


def _dtype(tensor: torch.Tensor) -> DType:
    found = dtype_of(tensor)
    assert found is not None
    return found
