"""lowrank: Δ = scale · (B@A) of a LoRA adapter."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from avops.kernels import registry
from avops.kernels.operands import Operand
from avops.kernels.rounding import widen


@dataclass(frozen=True)
class Factors:
    """left: f32 [rows, rank]; right: f32 [rank, columns]; scale: exactly f32."""

    left: np.ndarray
    right: np.ndarray
    scale: float


def factors(a: Operand, b: Operand, *, rank: int, scale: float, transposed: bool) -> Factors:
    """Factors of Δ = scale · B@A, or its transpose. a: [rank, n] flat, b: [m, rank] flat."""
    wide_a, wide_b = widen(a).reshape(rank, -1), widen(b).reshape(-1, rank)
    left, right = (wide_a.T, wide_b.T) if transposed else (wide_b, wide_a)
    return Factors(np.ascontiguousarray(left), np.ascontiguousarray(right), scale)


def lowrank(
    factors: Factors,
    start: int,
    out: Operand,
    *,
    threads: int = 1,
    backend: str | registry.Implementation | None = None,
) -> None:
    """Write flat elements start … of Δ to out (F32)."""
    registry.resolve("lowrank", backend).run(factors, start, out, threads)
