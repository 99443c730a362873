"""What an alignment vector says about one base tensor, and where its bytes are."""

from __future__ import annotations

import math
from dataclasses import dataclass

from avops.disk.checkpoint import Tensor


@dataclass(frozen=True, slots=True)
class Stored:
    """Values of one base tensor, stored one for one. aligned: weights rather than differences.

    ``tensor.shard`` is a number in the vector's checkpoint.
    """

    tensor: Tensor
    aligned: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape."""
        return self.tensor.shape

    @property
    def count(self) -> int:
        """Number of elements."""
        return self.tensor.count

    @property
    def computable(self) -> bool:
        """Whether the kernels compute on it."""
        return self.tensor.dtype.computable

    def __str__(self) -> str:
        return str(self.tensor)


@dataclass(frozen=True, slots=True)
class LowRank:
    """Δ = scale · B@A, or its transpose, in float32 and of the base tensor's shape.

    a: [rank, n], row-major however many dimensions n is stored in; b: [m, rank]. scale is exactly
    representable in float32.
    """

    a: Tensor
    b: Tensor
    rank: int
    scale: float
    transposed: bool
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """Number of elements of Δ."""
        return math.prod(self.shape)

    @property
    def computable(self) -> bool:
        """Whether the kernels compute on the factors."""
        return self.a.dtype.computable and self.b.dtype.computable

    def __str__(self) -> str:
        product = "(B@A)ᵀ" if self.transposed else "B@A"
        return f"{product} {list(self.shape)} of A {self.a} and B {self.b}"


Part = Stored | LowRank
