"""combine in numpy: the contract, spelled out. Slow, obvious, and the truth for other backends."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from avops.kernels.operands import Dither, Operand, Term
from avops.kernels.rounding import dither, narrow, widen


def available() -> tuple[bool, str]:
    """Always: numpy is a dependency."""
    return True, "numpy, always there"


def run(
    base: Operand,
    terms: Sequence[Term],
    out: Operand,
    rounding: Dither | None,
    threads: int,  # noqa: ARG001 - numpy works in the calling thread
) -> tuple[int, int, int, int]:
    """Write out; return the counts (nonfinite, unchanged, overflowed, flushed)."""
    with np.errstate(all="ignore"):
        origin = widen(base)
        acc = None
        for term in terms:
            delta = widen(term.values)
            if term.aligned:
                delta = delta - origin
            product = np.float32(term.lam) * delta
            acc = product if acc is None else acc + product
        total = origin if acc is None else origin + acc
        nearest = narrow(total, out.dtype)
        result = nearest if rounding is None else dither(total, out.dtype, rounding)
        unrounded = narrow(origin, out.dtype)
    pattern = f"u{out.dtype.size}"
    unchanged = np.count_nonzero(result.view(pattern) == unrounded.view(pattern))
    out.array[:] = result
    written = widen(out)
    return (
        int(np.count_nonzero(~np.isfinite(written))),
        int(unchanged),
        int(np.count_nonzero(np.isinf(written) & np.isfinite(total))),
        int(np.count_nonzero((written == 0) & (total != 0))),
    )
