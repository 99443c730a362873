"""combine in C++: csrc/combine.cpp and csrc/fused.h, through avops._native. Releases the GIL."""

from __future__ import annotations

from collections.abc import Sequence

from avops.kernels import extension
from avops.kernels.extension import available
from avops.kernels.operands import Dither, Operand, Term, address

__all__ = ["available", "run"]


def run(
    base: Operand, terms: Sequence[Term], out: Operand, rounding: Dither | None, threads: int
) -> tuple[int, int, int, int]:
    """Write out; return the counts (nonfinite, unchanged, overflowed, flushed)."""
    counts: tuple[int, int, int, int] = extension.NATIVE.combine(  # type: ignore[union-attr]
        address(base.array),
        base.dtype.code,
        tuple(
            (address(term.values.array), term.values.dtype.code, term.lam, term.aligned)
            for term in terms
        ),
        address(out.array),
        out.dtype.code,
        out.array.size,
        None if rounding is None else (rounding.key, rounding.start),
        threads,
    )
    return counts
