# mypy: ignore-errors
# ruff: noqa: N803 - constants are upper-case in Triton
"""swiglu's Triton kernel. Contract: swiglu/__init__.py. Launch with enable_fp_fusion=False.

The exponential is 2^(x·log₂e) by the device, within 2⁻²² of the value, and the quotient within
2 ulp: a thread computes faster than memory brings its numbers.
"""

import triton
import triton.language as tl

from avops.kernels.triton_rows import fetch, put


@triton.jit
def gated(gate, up, count, SIZE: tl.constexpr, EXACT: tl.constexpr):
    """SIZE elements."""
    place = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    inside = place < count
    x, other = fetch(gate + place, inside), fetch(up + place, inside)
    put(gate + place, x / (1.0 + tl.exp(-x)) * other, inside, EXACT)
