"""lowrank in numpy: the contract, spelled out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from avops.dtypes import F32
from avops.kernels.operands import Operand
from avops.kernels.rounding import narrow

if TYPE_CHECKING:
    from avops.kernels.lowrank import Factors


def available() -> tuple[bool, str]:
    """Always: numpy is a dependency."""
    return True, "numpy, always there"


def run(factors: Factors, start: int, out: Operand, threads: int) -> None:  # noqa: ARG001 - numpy works in the calling thread
    """Write out."""
    columns, count = factors.right.shape[1], out.array.size
    first, last = start // columns, (start + count - 1) // columns
    left = factors.left[first : last + 1]
    with np.errstate(all="ignore"):
        total = left[:, :1] * factors.right[0]
        for j in range(1, left.shape[1]):
            total = total + left[:, j : j + 1] * factors.right[j]
        result = np.float32(factors.scale) * total
    skip = start - first * columns
    out.array[:] = narrow(result.ravel()[skip : skip + count], F32)
