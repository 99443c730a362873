"""diff in C++: csrc/diff.cpp, through avops._native. Releases the GIL."""

from __future__ import annotations

from avops.kernels import extension
from avops.kernels.extension import available
from avops.kernels.operands import Operand, address

__all__ = ["available", "run"]


def run(base: Operand, aligned: Operand, out: Operand, threads: int) -> tuple[int, int]:
    """Write out; return the counts (nonfinite, zeros)."""
    counts: tuple[int, int] = extension.NATIVE.diff(  # type: ignore[union-attr]
        address(base.array),
        base.dtype.code,
        address(aligned.array),
        aligned.dtype.code,
        address(out.array),
        out.dtype.code,
        out.array.size,
        threads,
    )
    return counts
