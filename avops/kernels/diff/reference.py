"""diff in numpy: the contract, spelled out. Slow, obvious, and the truth for other backends."""

from __future__ import annotations

import numpy as np

from avops.kernels.operands import Operand
from avops.kernels.rounding import count_nonfinite, narrow, widen


def available() -> tuple[bool, str]:
    """Always: numpy is a dependency."""
    return True, "numpy, always there"


def run(base: Operand, aligned: Operand, out: Operand, threads: int) -> tuple[int, int]:  # noqa: ARG001 - numpy works in the calling thread
    """Write out; return the counts (nonfinite, zeros)."""
    with np.errstate(all="ignore"):
        out.array[:] = narrow(widen(aligned) - widen(base), out.dtype)
    zeros = np.count_nonzero(widen(out) == 0)
    return count_nonfinite(out), int(zeros)
