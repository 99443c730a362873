"""The cases lowrank is tested and measured on."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from avops.dtypes import BF16, COMPUTABLE, F32, DType
from avops.kernels.lowrank import Factors, factors
from avops.kernels.samples import sample

# The native kernel's tile, the longest sum that it takes at once, and the rows from which on it
# copies the right factor.
ROWS, COLUMNS, DEPTH, PACKED = 4, 64, 64, 8


@dataclass(frozen=True)
class Case:
    """Elements start … start + n − 1 of a product; element types of A and B; how they are drawn."""

    rows: int
    columns: int
    rank: int
    start: int
    n: int
    a: DType = F32
    b: DType = F32
    transposed: bool = False
    fill: str = "weights"

    def __str__(self) -> str:
        shape = f"{self.rows}x{self.columns}r{self.rank}{'t' if self.transposed else ''}"
        return f"{shape}-{self.start}+{self.n}-{self.a}-{self.b}-{self.fill}"

    def factors(self, seed: int = 0) -> Factors:
        """The factors."""
        rng = np.random.default_rng(seed)
        n, m = (self.rows, self.columns) if self.transposed else (self.columns, self.rows)
        a, b = (sample(self.fill, d, s * self.rank, rng) for d, s in ((self.a, n), (self.b, m)))
        return factors(a, b, rank=self.rank, scale=1.5, transposed=self.transposed)


def cases() -> Iterator[Case]:
    """Sizes around the tile, whole and cut anywhere; long sums; every mix of element types."""
    sizes = itertools.product((1, ROWS - 1, ROWS, 2 * ROWS + 1), (1, COLUMNS - 1, COLUMNS, 131))
    for (rows, columns), rank in itertools.product(sizes, (1, 2, 17)):
        size = rows * columns
        cuts = {(0, size), (0, 0), (size // 3, size // 2), (size - 1, 1), (1, size - 1)}
        for start, n in sorted(cuts):
            yield Case(rows, columns, rank, start, n)
    for rank, rows in itertools.product((DEPTH - 1, DEPTH, DEPTH + 1, 2 * DEPTH + 3), (1, PACKED)):
        for columns in (7, 2 * COLUMNS + 40):
            yield Case(rows + 3, columns, rank, 5, (rows + 1) * columns)
    for a, b, transposed in itertools.product(COMPUTABLE, COMPUTABLE, (False, True)):
        for fill in ("weights", "bits"):
            yield Case(9, 150, 3, 100, 1001, a, b, transposed, fill)


# A window of a 7B model's projections, with usual ranks.
TYPICAL: dict[str, Case] = {
    f"4096 x {columns}, rank {rank}": Case(4096, columns, rank, 0, 128 * columns, BF16, BF16)
    for columns, rank in ((4096, 16), (4096, 64), (14336, 8))
}
