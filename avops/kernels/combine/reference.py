"""combine in numpy: the contract, spelled out. Slow, obvious, and the truth for other backends."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from avops.kernels.operands import Operand, Term
from avops.kernels.rounding import count_nonfinite, narrow, widen


def available() -> tuple[bool, str]:
    """Always: numpy is a dependency."""
    return True, "numpy, always there"


def run(base: Operand, terms: Sequence[Term], out: Operand, threads: int) -> tuple[int, int]:  # noqa: ARG001 - numpy works in the calling thread
    """Write out; return the counts (nonfinite, unchanged)."""
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
        result = narrow(total, out.dtype)
        unrounded = narrow(origin, out.dtype)
    pattern = f"u{out.dtype.size}"
    unchanged = np.count_nonzero(result.view(pattern) == unrounded.view(pattern))
    out.array[:] = result
    return count_nonfinite(out), int(unchanged)
