# mypy: ignore-errors
# ruff: noqa: N803 - constants are upper-case in Triton
"""rms_norm's Triton kernel. Contract: rms_norm/__init__.py. Launch with enable_fp_fusion=False."""

import triton
import triton.language as tl

from avops.kernels.triton_rows import fetch, put


@triton.jit
def norm(x, weight, out, epsilon, columns, SIZE: tl.constexpr, EXACT: tl.constexpr):
    """One row: SIZE sums of squares side by side, added up by the device in its own fixed order."""
    start = tl.program_id(0).to(tl.int64) * columns
    place = tl.arange(0, SIZE)
    value = fetch(x + start + place, place < columns)
    squares = value * value
    for first in range(SIZE, columns, SIZE):
        more = fetch(x + start + first + place, first + place < columns)
        squares += more * more
    mean = tl.div_rn(tl.sum(squares, 0), tl.cast(columns, tl.float32))
    scale = tl.div_rn(1.0, tl.sqrt_rn(mean + epsilon))
    factor = fetch(weight + place, place < columns)
    put(out + start + place, value * scale * factor, place < columns, EXACT)
    for first in range(SIZE, columns, SIZE):
        inside = first + place < columns
        value = fetch(x + start + first + place, inside)
        factor = fetch(weight + first + place, inside)
        put(out + start + first + place, value * scale * factor, inside, EXACT)
