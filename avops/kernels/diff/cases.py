"""The cases diff is tested and measured on."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from avops.dtypes import BF16, COMPUTABLE, F16, F32, DType
from avops.kernels.operands import Operand
from avops.kernels.samples import BLOCK, FILLS, LENGTHS, sample


@dataclass(frozen=True)
class Case:
    """One difference: length, element types, and how values are drawn."""

    n: int
    base: DType
    aligned: DType
    out: DType
    fill: str = "weights"

    def __str__(self) -> str:
        return f"{self.aligned}-{self.base}-{self.out}-{self.n}-{self.fill}"

    def inputs(self, seed: int = 0) -> tuple[Operand, Operand]:
        """Base and aligned; a third of the elements are equal."""
        rng = np.random.default_rng(seed)
        base = sample(self.fill, self.base, self.n, rng)
        aligned = sample(self.fill, self.aligned, self.n, rng)
        if self.base == self.aligned:
            aligned.array[::3] = base.array[::3]
        return base, aligned


def cases() -> Iterator[Case]:
    """Every mix of dtypes at three lengths, and every length with two mixes."""
    for base, aligned, out in itertools.product(COMPUTABLE, repeat=3):
        for fill, n in itertools.product(FILLS, (1, BLOCK + 1, 1999)):
            yield Case(n, base, aligned, out, fill)
    for n, fill in itertools.product(LENGTHS, FILLS):
        yield Case(n, BF16, BF16, F32, fill)
        yield Case(n, F16, F32, F16, fill)


# What `avops extract` does.
TYPICAL: dict[str, tuple[DType, DType, DType]] = {
    "bf16 - bf16 = f32": (BF16, BF16, F32),
    "f32 - f32 = f32": (F32, F32, F32),
    "bf16 - bf16 = bf16": (BF16, BF16, BF16),
}
