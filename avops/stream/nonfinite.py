"""Non-finite results: name the tensor, the count and the input that holds them.

Runs only after a kernel has counted a non-finite output, so it may read the tensor again.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import NoReturn

import numpy as np

from avops.disk import open_regular, read_exactly
from avops.dtypes import F32
from avops.errors import NonFiniteError
from avops.kernels import Operand, combine
from avops.stream.plan import Plan, Range, Segment

_CHUNK = 1 << 19


def refuse_nonfinite(plan: Plan, found: Counter[str], target: Path, advice: str) -> NoReturn:
    """Raise NonFiniteError for the first tensor of ``plan`` in ``found`` (tensor to count).

    advice: what to do about an overflow.
    """
    segment = next(segment for segment in plan.segments if segment.tensor in found)
    culprits = []
    if _count(plan, segment.base, segment):
        culprits.append(f"the base {plan.inputs[segment.base.file]}")
    culprits += [
        f"AV {term.name} ({plan.inputs[term.values.file]})"
        for term in segment.terms
        if _count(plan, term.values, segment)
    ]
    held = f"already in {' and '.join(culprits)}; nothing was written; repair that input"
    overflow = f"by overflow of {segment.dtype}; nothing was written; {advice}"
    reason = held if culprits else overflow
    others = f" (and {len(found) - 1} more tensors)" if len(found) > 1 else ""
    raise NonFiniteError(
        f"{target}: tensor {segment.tensor!r} would hold {found[segment.tensor]} values that are "
        f"NaN or infinite{others}, {reason}"
    )


def _count(plan: Plan, where: Range, segment: Segment) -> int:
    """Non-finite values of one operand of ``segment``."""
    path = plan.inputs[where.file]
    fd = open_regular(path)
    try:
        total = 0
        for start in range(0, segment.count, _CHUNK):
            count = min(_CHUNK, segment.count - start)
            raw = np.empty(count * where.dtype.size, np.uint8)
            read_exactly(fd, raw.data, where.offset + start * where.dtype.size, str(path))
            values = Operand(raw.view(where.dtype.storage), where.dtype)
            total += combine(values, (), Operand(np.empty(count, np.float32), F32)).nonfinite
        return total
    finally:
        os.close(fd)
