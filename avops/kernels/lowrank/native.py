"""lowrank in C++: csrc/lowrank.cpp, through avops._native. Releases the GIL."""

from __future__ import annotations

from typing import TYPE_CHECKING

from avops.kernels import extension
from avops.kernels.extension import available
from avops.kernels.operands import Operand, address

if TYPE_CHECKING:
    from avops.kernels.lowrank import Factors

__all__ = ["available", "run"]


def run(factors: Factors, start: int, out: Operand, threads: int) -> None:
    """Write out."""
    extension.NATIVE.lowrank(  # type: ignore[union-attr]
        address(factors.left),
        address(factors.right),
        factors.left.shape[1],
        factors.right.shape[1],
        factors.scale,
        start,
        address(out.array),
        out.array.size,
        threads,
    )
