"""The cases combine is tested and measured on."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from avops.dtypes import BF16, COMPUTABLE, F16, F32, DType
from avops.kernels.operands import Operand, Term
from avops.kernels.samples import BLOCK, FILLS, LENGTHS, sample

Kind = tuple[DType, bool]  # (dtype of the values, aligned)
KINDS: tuple[Kind, ...] = tuple(itertools.product(COMPUTABLE, (False, True)))

_LAMS = tuple(float(np.float32(lam)) for lam in (-1.0, 0.6, -0.37, 1.5, 1.0, 0.0))
# λ that puts the sum of two whole numbers from 128 to 255 half-way between outputs.
_TIE_LAMS = {BF16: 2.0**-1, F16: 2.0**-4, F32: 2.0**-17}


@dataclass(frozen=True)
class Case:
    """One combination: length, element types, kinds of terms, and how values are drawn."""

    n: int
    base: DType
    out: DType
    kinds: tuple[Kind, ...]
    fill: str = "weights"

    def __str__(self) -> str:
        terms = "+".join(f"{dtype}{'a' if aligned else 'd'}" for dtype, aligned in self.kinds)
        return f"{self.base}+{terms or 'none'}-{self.out}-{self.n}-{self.fill}"

    def lams(self) -> tuple[float, ...]:
        """λ of each term."""
        if self.fill == "ties":
            return (_TIE_LAMS[self.out],) * len(self.kinds)
        return _LAMS[: len(self.kinds)]

    def inputs(self, seed: int = 0) -> tuple[Operand, list[Term]]:
        """Base and terms."""
        rng = np.random.default_rng(seed)
        base = sample(self.fill, self.base, self.n, rng)
        terms = [
            Term(sample(self.fill, dtype, self.n, rng), lam, aligned)
            for (dtype, aligned), lam in zip(self.kinds, self.lams(), strict=True)
        ]
        return base, terms


def cases() -> Iterator[Case]:
    """Every mix of dtypes and kinds at three lengths, and every length with three mixes."""
    mixes: list[tuple[Kind, ...]] = [(), *((kind,) for kind in KINDS), KINDS]
    for base, out, kinds, fill in itertools.product(COMPUTABLE, COMPUTABLE, mixes, FILLS):
        for n in (1, BLOCK + 1, 1999):
            yield Case(n, base, out, kinds, fill)
    for n, fill in itertools.product(LENGTHS, FILLS):
        yield Case(n, BF16, BF16, ((BF16, True),) * 3, fill)
        yield Case(n, BF16, F32, ((F32, False), (F16, True)), fill)
        yield Case(n, F16, F16, ((F32, False),), fill)


# What merges do: three aligned checkpoints, three stored deltas.
TYPICAL: dict[str, tuple[DType, DType, tuple[Kind, ...]]] = {
    "bf16 + 3 bf16 aligned": (BF16, BF16, ((BF16, True),) * 3),
    "bf16 + 3 f32 deltas": (BF16, BF16, ((F32, False),) * 3),
    "f16 + 3 f16 aligned": (F16, F16, ((F16, True),) * 3),
    "f32 + 3 f32 aligned": (F32, F32, ((F32, True),) * 3),
    "f32 + 1 f32 delta": (F32, F32, ((F32, False),)),
}
