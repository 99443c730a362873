"""Patterns that are not finite: by the formats' definitions, and against torch."""

from __future__ import annotations

import numpy as np
import pytest

from avops.dtypes import DTYPES
from avops.stream.finite import can_be_nonfinite, count_nonfinite, unit

# Values that are not finite, and the finite ones next to them: largest, smallest, zeros.
PATTERNS = {
    "BF16": ("<u2", [0x7F80, 0xFF80, 0x7FC0, 0x7F81, 0xFFFF], [0x7F7F, 0xFF7F, 0, 0x8000, 1]),
    "F16": ("<u2", [0x7C00, 0xFC00, 0x7E00, 0x7C01, 0xFFFF], [0x7BFF, 0xFBFF, 0, 0x8000, 1]),
    "F32": ("<u4", [0x7F800000, 0xFF800000, 0x7F800001, 0xFFFFFFFF], [0x7F7FFFFF, 0x80000000, 1]),
    "F64": ("<u8", [0x7FF << 52, 0xFFF << 52, (0x7FF << 52) + 1], [(0x7FF << 52) - 1, 1 << 63, 1]),
    "C64": ("<u4", [0x7F800000, 0xFF800000, 0x7F800001, 0xFFFFFFFF], [0x7F7FFFFF, 0, 1, 2]),
    "F8_E4M3": ("|u1", [0x7F, 0xFF], [0x7E, 0xFE, 0x80, 0, 0x78]),
    "F8_E5M2": ("|u1", [0x7C, 0x7D, 0x7F, 0xFC, 0xFF], [0x7B, 0xFB, 0x80, 0]),
    "F8_E8M0": ("|u1", [0xFF], [0xFE, 0x7F, 0x80, 0]),
    "F8_E4M3FNUZ": ("|u1", [0x80], [0x7F, 0xFF, 0x81, 0]),
    "F8_E5M2FNUZ": ("|u1", [0x80], [0x7F, 0xFF, 0x81, 0]),
}


@pytest.mark.parametrize("tag", PATTERNS)
def test_patterns_that_are_not_finite(tag: str) -> None:
    storage, bad, good = PATTERNS[tag]
    scratch = np.empty(1024, np.uint8)
    assert unit(DTYPES[tag]) == np.dtype(storage).itemsize
    for bits, count in ((bad, len(bad)), (good, 0), (bad + good, len(bad)), ([], 0)):
        raw = np.array(bits, storage).view(np.uint8)
        assert count_nonfinite(raw, DTYPES[tag], scratch) == count


def test_every_floating_dtype_is_looked_at() -> None:
    import torch

    looked_at = {dtype.tag for dtype in DTYPES.values() if can_be_nonfinite(dtype)}
    assert looked_at == set(PATTERNS)
    scratch = np.empty(1 << 17, np.uint8)
    for dtype in DTYPES.values():
        if dtype.torch is None or dtype.tag not in looked_at or dtype.bits > 16:
            continue
        # All patterns there are, against torch.
        bits = np.arange(1 << dtype.bits, dtype=f"<u{dtype.size}")
        values = torch.from_numpy(bits.view(f"<i{dtype.size}")).view(getattr(torch, dtype.torch))
        expected = int((~torch.isfinite(values.float())).sum())
        assert count_nonfinite(bits.view(np.uint8), dtype, scratch) == expected, dtype
