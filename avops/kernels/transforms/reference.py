"""The transforms on whole tensors: slow, obvious, and the truth for those that work in blocks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from avops.kernels.rounding import uniform


def trim(delta: np.ndarray, keep: int) -> np.ndarray:
    """``delta`` (f32, flat) with only the ``keep`` largest magnitudes left; no zero is −0."""
    magnitude = delta.view(np.uint32) & np.uint32(0x7FFFFFFF)
    # A stable sort: of equal magnitudes the first comes first.
    order = np.argsort(np.uint32(0xFFFFFFFF) - magnitude, kind="stable")
    result = np.zeros_like(delta)
    result[order[:keep]] = delta[order[:keep]]
    return np.where(result == 0, np.float32(0), result)


def elect(deltas: Sequence[np.ndarray]) -> list[np.ndarray]:
    """``deltas`` (f32) with entries set to 0 whose sign is not that of their sum."""
    total = np.zeros(deltas[0].shape, np.float64)
    with np.errstate(invalid="ignore"):
        for delta in deltas:
            total = total + delta
        sign = np.sign(total)
        return [np.where(np.sign(delta) * sign > 0, delta, np.float32(0)) for delta in deltas]


def dare(delta: np.ndarray, start: int, key: int, limit: int, factor: float) -> np.ndarray:
    """``delta`` (f32, flat) with entries dropped by the hash, and the others rescaled."""
    dropped = uniform(key, start, delta.size).astype(np.uint64) < limit
    with np.errstate(over="ignore"):
        return np.where(dropped, np.float32(0), delta * np.float32(factor))
