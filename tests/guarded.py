"""Outputs for kernel tests: NaN-poisoned, at any byte offset, between sentinels."""

from __future__ import annotations

import numpy as np

from avops.dtypes import DType
from avops.kernels import Operand

_GUARD = 64
_SENTINEL = 0xA5


class Guarded:
    """An array of ``n`` elements with 64 sentinel bytes before and after it.

    offset: bytes by which the array's address misses a multiple of 64.
    """

    def __init__(self, n: int, dtype: DType, offset: int = 0) -> None:
        raw = np.full(n * dtype.size + 4 * _GUARD, _SENTINEL, np.uint8)
        start = _GUARD + (-raw.ctypes.data) % _GUARD + offset
        self._before = raw[:start]
        self._after = raw[start + n * dtype.size :]
        array = raw[start : start + n * dtype.size].view(dtype.storage)
        array.view(f"u{dtype.size}")[:] = (1 << dtype.bits) - 1  # a NaN in every dtype
        self.operand = Operand(array, dtype)

    @classmethod
    def copy(cls, source: Operand, offset: int = 0) -> Guarded:
        """A guarded copy of ``source``."""
        made = cls(source.array.size, source.dtype, offset)
        made.operand.array[:] = source.array
        return made

    def bits(self) -> np.ndarray:
        """The elements' patterns. Fails when something was written outside of them."""
        for guard in (self._before, self._after):
            assert (guard == _SENTINEL).all(), "bytes outside of the output were written"
        return pattern(self.operand)


def pattern(operand: Operand) -> np.ndarray:
    """The elements as unsigned integers, so that equality is equality of bits."""
    return operand.array.view(f"u{operand.dtype.size}")
