# mypy: ignore-errors
# ruff: noqa: N803 - constants are upper-case in Triton
"""rope's Triton kernel. Contract: rope/__init__.py. Launch with enable_fp_fusion=False."""

import triton
import triton.language as tl

from avops.kernels.triton_rows import fetch, put


@triton.jit
def turn(
    x, cosine, sine, heads, half, parts, HEADS: tl.constexpr, HALF: tl.constexpr,
    EXACT: tl.constexpr,
):  # fmt: skip
    """HEADS heads of one row, whole: both halves are read before they are written."""
    program = tl.program_id(0)
    row = (program // parts).to(tl.int64)
    head = program % parts * HEADS + tl.arange(0, HEADS)[:, None]
    place = tl.arange(0, HALF)[None, :]
    inside = (head < heads) & (place < half)
    first = x + row * heads * half * 2 + head * half * 2 + place
    one, two = fetch(first, inside), fetch(first + half, inside)
    angle = row * half * 2 + place
    near, far = fetch(cosine + angle, place < half), fetch(cosine + angle + half, place < half)
    put(first, one * near - two * fetch(sine + angle, place < half), inside, EXACT)
    aside = fetch(sine + angle + half, place < half)
    put(first + half, two * far + one * aside, inside, EXACT)
