"""Storage <-> float32, in numpy: the truth for every backend's conversions.

Widening is exact. Narrowing rounds to nearest, ties to even, keeps subnormals, overflows to
infinity, and turns every NaN into the one positive quiet NaN without payload (bf16 0x7fc0,
f16 0x7e00, f32 0x7fc00000): processors disagree about the sign and payload of a NaN.
"""

from __future__ import annotations

import numpy as np

from avops.dtypes import BF16, F16, F32, DType
from avops.kernels.operands import Operand

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
