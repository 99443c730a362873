"""gram: inner products of the terms and of what they changed."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from avops.kernels import registry
from avops.kernels.operands import Operand, Term, check_operand, check_terms


def gram(
    base: Operand,
    terms: Sequence[Term],
    out: Operand,
    *,
    backend: str | registry.Implementation | None = None,
) -> array[float]:
    """Inner products of the rows λ_k·Δ_k and, last, out − base: the upper triangle, row by row.

    Shapes and dtypes
        Flat arrays of one length; base, every term and out may be any mix of F32, F16 and BF16.
        The result has (terms + 1)(terms + 2) / 2 numbers, f64.
    Numerics (the same bits from every backend)
        Δ_k as in ``combine``, in f32; then all in f64: λ_k·Δ_k (exact), out − base, products, and
        eight sums for each pair, one for every eighth element, added in order from 0 on, then one
        to the other. Elements where any row is NaN or infinite count as 0.
    Errors
        TypeError, ValueError: operands that do not fit (operands.py). MemoryError.
        BackendError: a forced backend cannot serve.
    Bytes moved
        Each input once; for samples, not for whole models.
    Source
        Normal equations of least squares, for the effective λ (effective.py).
    """
    implementation = registry.resolve("gram", backend)
    length = base.array.size
    check_operand(base, "base", length)
    check_terms(terms, length)
    check_operand(out, "out", length)
    found: array[float] = implementation.run(base, terms, out)
    return found
