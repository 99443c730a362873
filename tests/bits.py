"""bfloat16 bits in numpy, for tests that must not lean on the code under test."""

from __future__ import annotations

import numpy as np


def bf16(array: np.ndarray) -> np.ndarray:
    """float32 to bfloat16 bits, round to nearest even, by the textbook formula (finite input)."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> np.uint64(16)) & np.uint64(1))) >> np.uint64(16)).astype(
        np.uint16
    )


def from_bf16(bits: np.ndarray) -> np.ndarray:
    """bfloat16 bits to float32, exactly."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
