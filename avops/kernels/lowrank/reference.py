"""lowrank in numpy: the contract, spelled out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from avops.kernels.operands import Operand

if TYPE_CHECKING:
    from avops.kernels.lowrank import Factors


def available() -> tuple[bool, str]:
    """Always: numpy is a dependency."""
    return True, "numpy, always there"


def run(factors: Factors, start: int, out: Operand, threads: int) -> None:  # noqa: ARG001 - numpy works in the calling thread
    """Write out."""
    columns, count = factors.right.shape[1], out.array.size
    if not count:
        return
    first, last = start // columns, (start + count - 1) // columns
    left, total = factors.left[first : last + 1], None
    with np.errstate(all="ignore"):
        for j in range(left.shape[1]):
            product = left[:, j : j + 1] * factors.right[j]
            total = product if total is None else total + product
        result = np.float32(factors.scale) * total
    skip = start - first * columns
    out.array[:] = result.ravel()[skip : skip + count]
