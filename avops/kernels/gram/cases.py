"""The cases gram is tested on: those of combine, with an output that is not what was asked for."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from avops.dtypes import BF16, COMPUTABLE, F32
from avops.kernels.combine.cases import KINDS, Case
from avops.kernels.samples import FILLS

# The native kernel's step and lanes.
STEP, LANES = 256, 8


def cases() -> Iterator[Case]:
    """Every mix of dtypes and kinds, and lengths around step and lanes."""
    for base, out, fill in itertools.product(COMPUTABLE, COMPUTABLE, FILLS):
        for kinds in ((), *((kind,) for kind in KINDS), KINDS):
            yield Case(1999, base, out, kinds, fill)
    lengths = (0, 1, LANES - 1, LANES, LANES + 1, STEP - 1, STEP, STEP + 1, 4096)
    for n, fill in itertools.product(lengths, FILLS):
        yield Case(n, BF16, BF16, ((BF16, True),) * 3, fill)
        yield Case(n, F32, BF16, ((F32, False),), fill)
