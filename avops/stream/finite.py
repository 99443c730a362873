"""Values that are not finite, told from their bits: NaN and infinities of every floating dtype.

Source: IEEE 754 for F16, F32, F64 and (cut off) BF16; OCP 8-bit floating point, revision 1.0, for
F8_E4M3 (NaN only, S.1111.111) and F8_E5M2; OCP microscaling formats for F8_E8M0 (NaN is 0xFF) and
the narrower ones, which have neither; F8_*FNUZ have one NaN, 0x80.
"""

from __future__ import annotations

import numpy as np

from avops.dtypes import DType

# tag: storage, mask, pattern. A value is not finite where bits & mask == pattern.
_PATTERNS = {
    "BF16": ("<u2", 0x7F80, 0x7F80),
    "F16": ("<u2", 0x7C00, 0x7C00),
    "F32": ("<u4", 0x7F800000, 0x7F800000),
    "F64": ("<u8", 0x7FF0000000000000, 0x7FF0000000000000),
    # Each value is two of F32: real and imaginary part.
    "C64": ("<u4", 0x7F800000, 0x7F800000),
    "F8_E4M3": ("|u1", 0x7F, 0x7F),
    "F8_E5M2": ("|u1", 0x7C, 0x7C),
    "F8_E8M0": ("|u1", 0xFF, 0xFF),
    "F8_E4M3FNUZ": ("|u1", 0xFF, 0x80),
    "F8_E5M2FNUZ": ("|u1", 0xFF, 0x80),
}


def can_be_nonfinite(dtype: DType) -> bool:
    """Whether the dtype has a NaN or an infinity."""
    return dtype.tag in _PATTERNS


def unit(dtype: DType) -> int:
    """Bytes that are looked at together: of a complex value each part by itself."""
    return np.dtype(_PATTERNS[dtype.tag][0]).itemsize


def count_nonfinite(raw: np.ndarray, dtype: DType, scratch: np.ndarray) -> int:
    """How many values in ``raw``, the bytes of whole values, are not finite.

    scratch: at least as many bytes of working memory.
    """
    storage, mask, pattern = _PATTERNS[dtype.tag]
    bits = raw.view(storage)
    masked = scratch[: raw.size].view(storage)
    np.bitwise_and(bits, bits.dtype.type(mask), out=masked)
    if mask == pattern and (not masked.size or masked.max() < mask):
        return 0
    return int(np.count_nonzero(masked == bits.dtype.type(pattern)))
