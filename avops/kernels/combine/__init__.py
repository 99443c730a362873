"""combine: base plus a weighted sum of alignment vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from avops.kernels import registry
from avops.kernels.operands import (
    Dither,
    Operand,
    Term,
    check_dither,
    check_operand,
    check_output,
    check_terms,
    check_threads,
)


@dataclass(frozen=True)
class CombineStats:
    """Counts over the outputs.

    nonfinite: NaN or infinite. unchanged: the bits equal the base element's, rounded to nearest
    in the output dtype. overflowed: infinite, from a finite sum base + acc. flushed: ±0, from a
    sum that is not 0.
    """

    nonfinite: int
    unchanged: int
    overflowed: int = 0
    flushed: int = 0


def combine(
    base: Operand,
    terms: Sequence[Term],
    out: Operand,
    *,
    rounding: Dither | None = None,
    threads: int = 1,
    backend: str | registry.Implementation | None = None,
) -> CombineStats:
    """Write base + Σ_k λ_k Δ_k to out, elementwise.

    Shapes and dtypes
        Flat arrays of one length; base, every term and out may be any mix of F32, F16 and BF16.
    Numerics (IEEE binary32, the same bits from every backend and for any thread count)
        Δ_k = f32(values), or for an aligned term f32(values) − f32(base), rounded to f32.
        p_k = λ_k · Δ_k rounded; acc = p_0, then acc + p_k rounded, in the order of the terms: no
        FMA. out = RNE(base + acc): the sum rounded to f32, then to the output dtype, ties to even.
        No terms: out = RNE(base), which keeps the sign of zero.
        acc starts as p_0, not as 0 + p_0: so base −0 survives p_0 = −0; −0 plus acc +0 is +0.
        Subnormals are kept, overflow gives infinity, and every NaN is the dtype's one positive
        quiet NaN without payload (see rounding.py).
    Dithered rounding (rounding=Dither(key, start))
        Instead of RNE to the output dtype: magnitude floor(|sum| / ulp + u), where u in [0, 1) is
        a hash of key and flat index (rounding.py). Unbiased over weights; for one weight monotone
        in the sum; what is exact in the output dtype stays; f32 output as without. A finite sum
        above the largest finite value may become infinite.
    Identities
        λ = 0 and finite Δ: the base's values (bits: unless base is −0 and acc +0).
        One aligned term, λ = 1, base, aligned and out of one dtype, finite: the bits of aligned,
        except that −0 becomes +0, and except where aligned − base is not exact in f32: BF16 needs
        |base| > 2^16 |aligned| for that, or a difference that overflows; F16 |base| > 2^13
        |aligned|; F32 is sure to be exact only between base / 2 and 2 base.
    Aliasing
        out is exactly base's memory with base's dtype (in place), or overlaps no input.
    Errors
        TypeError, ValueError: an operand, λ or thread count that does not fit (operands.py).
        BackendError: ``backend=`` or AVOPS_BACKEND forces one that cannot serve.
    Bytes moved
        Each input is read once, out is written once; no memory in proportion to the length
        (reference: about 30 bytes an element).
    Source
        Contract 1 of docs/design.md: task arithmetic, deltas first and base last.
    """
    implementation = registry.resolve("combine", backend)
    length = base.array.size
    check_operand(base, "base", length)
    check_terms(terms, length)
    check_operand(out, "out", length)
    check_output(out, base, [term.values for term in terms], "term")
    check_threads(threads)
    check_dither(rounding)
    return CombineStats(*implementation.run(base, terms, out, rounding, threads))
