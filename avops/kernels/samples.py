"""Lengths and values that kernels are tested and measured with."""

from __future__ import annotations

import numpy as np

from avops.dtypes import DType
from avops.kernels.operands import Operand
from avops.kernels.rounding import narrow

# The native kernels' block, and the elements from which on they use a second thread.
BLOCK = 512
TWO_THREADS = 2 * 1024 * BLOCK

# Elements in one pass of the fused kernels (all of one 16-bit dtype), and terms at most.
FUSED = 2048
FUSED_TERMS = 4

# 0, 1, primes, and one around every vector width, block and thread boundary.
LENGTHS = (
    *(0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 61, 63, 64, 65, 127),
    *(BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK - 1, 2 * BLOCK + 1, 1999, FUSED + 1, 8191),
    *(TWO_THREADS - 1, TWO_THREADS + 1),
)

# weights: normal, sd 0.02. ties: whole numbers from 128 to 255, which every dtype holds.
# bits: any pattern at all, so NaN, infinities and subnormals of either sign too.
FILLS = ("weights", "ties", "bits")


def sample(fill: str, dtype: DType, n: int, rng: np.random.Generator) -> Operand:
    """``n`` values of ``dtype``."""
    if fill == "bits":
        bits = rng.integers(0, 1 << dtype.bits, n, dtype=f"u{dtype.size}")
        return Operand(bits.view(dtype.storage), dtype)
    if fill == "ties":
        values = rng.integers(128, 256, n).astype(np.float32)
    else:
        values = rng.normal(0, 0.02, n).astype(np.float32)
    return Operand(narrow(values, dtype), dtype)
