"""gram in C++: csrc/gram.cpp, through avops._native. Releases the GIL."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from avops.kernels import extension
from avops.kernels.extension import available
from avops.kernels.operands import Operand, Term, address

__all__ = ["available", "run"]


def run(base: Operand, terms: Sequence[Term], out: Operand) -> array[float]:
    """The upper triangle of the inner products, row by row."""
    count = len(terms) + 1
    found = array("d", bytes(8 * (count * (count + 1) // 2)))
    extension.NATIVE.gram(  # type: ignore[union-attr]
        address(base.array),
        base.dtype.code,
        tuple(
            (address(term.values.array), term.values.dtype.code, term.lam, term.aligned)
            for term in terms
        ),
        address(out.array),
        out.dtype.code,
        out.array.size,
        found.buffer_info()[0],
    )
    return found
