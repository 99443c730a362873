"""Storage <-> float32, in numpy: the truth for every backend's conversions.

Widening is exact. Narrowing rounds to nearest, ties to even, keeps subnormals, overflows to
infinity, and turns every NaN into the one positive quiet NaN without payload (bf16 0x7fc0,
f16 0x7e00, f32 0x7fc00000): processors disagree about the sign and payload of a NaN.
"""

from __future__ import annotations

import numpy as np

from avops.dtypes import BF16, F16, F32, DType
from avops.kernels.operands import Dither, Operand

_NAN = {F32: 0x7FC00000, F16: 0x7E00, BF16: 0x7FC0}


def widen(operand: Operand) -> np.ndarray:
    """The operand's values as f32."""
    if operand.dtype == BF16:
        return (operand.array.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return operand.array.astype(np.float32)


def narrow(values: np.ndarray, dtype: DType) -> np.ndarray:
    """``values`` (f32) rounded to ``dtype``, in its storage."""
    if dtype == BF16:
        bits = values.view(np.uint32)
        # Just under half an ulp, plus one when the last kept bit is odd: ties go to even.
        result = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)
    else:
        result = values.astype(dtype.storage)
    result.view(f"u{dtype.size}")[np.isnan(values)] = _NAN[dtype]
    return result


def count_nonfinite(operand: Operand) -> int:
    """How many elements are NaN or infinite."""
    return int(np.count_nonzero(~np.isfinite(widen(operand))))


def uniform(key: int, start: int, count: int) -> np.ndarray:
    """32 uniform bits (u32) for each of the flat indices start … start + count − 1.

    A counter hash: of key, index and nothing else. Source: splitmix64's finaliser for the stretch
    of 2^32 indices, and the mixer "lowbias32" (C. Wellons) with an addend in its middle.
    """
    indices = np.arange(count, dtype=np.uint64) + np.uint64(start)
    found = np.empty(count, np.uint32)
    for high in np.unique(indices >> np.uint64(32)):
        here = (indices >> np.uint64(32)) == high
        x = (key + (int(high) + 1) * 0x9E3779B97F4A7C15) % 2**64
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
        x ^= x >> 31
        y = (indices[here] & np.uint64(0xFFFFFFFF)).astype(np.uint32) ^ np.uint32(x % 2**32)
        y = (y ^ (y >> 16)) * np.uint32(0x7FEB352D) + np.uint32(x >> 32)
        y = (y ^ (y >> 15)) * np.uint32(0x846CA68B)
        found[here] = y ^ (y >> 16)
    return found


def dither(values: np.ndarray, dtype: DType, rounding: Dither) -> np.ndarray:
    """``values`` (f32) rounded to ``dtype`` by dither, in its storage.

    Of magnitude x / ulp = k + fraction the result is floor(x / ulp + u), u being the top 16 (bf16)
    or 13 (f16) bits of the weight's uniform number as a fraction. Nothing is dropped for f32.
    """
    if dtype == F32:
        return narrow(values, dtype)
    r = uniform(rounding.key, rounding.start, values.size)
    bits = values.view(np.uint32)
    if dtype == BF16:
        result = ((bits.astype(np.uint64) + (r >> 16)) >> np.uint64(16)).astype(np.uint16)
    else:
        size = bits & np.uint32(0x7FFFFFFF)
        u = r >> 19
        normal = (size - np.uint32(112 << 23) + u) >> 13
        # In units of 2^-37: an ulp of 2^-24 has 2^13 of them.
        small = np.minimum(size, np.uint32(0x38800000)).view(np.float32) * np.float32(2.0**37)
        subnormal = (small.astype(np.uint32) + u) >> 13
        finite = np.where(size < 0x38800000, subnormal, normal)
        magnitude = np.where(size >= 0x47800000, np.uint32(0x7C00), finite)
        result = ((bits >> 16) & np.uint32(0x8000) | magnitude).astype(np.uint16).view("<f2")
    result.view("u2")[np.isnan(values)] = _NAN[dtype]
    return result
