"""diff: the alignment vector between two sets of weights."""

from __future__ import annotations

from dataclasses import dataclass

from avops.kernels import registry
from avops.kernels.operands import Operand, check_operand, check_output, check_threads


@dataclass(frozen=True)
class DiffStats:
    """Counts over the outputs. nonfinite: NaN or infinite. zeros: +0 or −0."""

    nonfinite: int
    zeros: int


def diff(
    base: Operand,
    aligned: Operand,
    out: Operand,
    *,
    threads: int = 1,
    backend: str | registry.Implementation | None = None,
) -> DiffStats:
    """Write aligned − base to out, elementwise.

    Shapes and dtypes
        Flat arrays of one length; base, aligned and out may be any mix of F32, F16 and BF16.
    Numerics (IEEE binary32, the same bits from every backend and for any thread count)
        out = RNE(f32(aligned) − f32(base)): the difference rounded to f32, then to the output
        dtype, ties to even. So a stored F32 delta is the Δ that combine computes from an aligned
        term; only a NaN may differ, which stays a NaN.
        Subnormals are kept, overflow gives infinity, and every NaN is the dtype's one positive
        quiet NaN without payload (see rounding.py). Equal finite values give +0.
    Aliasing
        out is exactly base's memory with base's dtype (in place), or overlaps no input.
    Errors
        TypeError, ValueError: an operand or thread count that does not fit (operands.py).
        BackendError: ``backend=`` or AVOPS_BACKEND forces one that cannot serve.
    Bytes moved
        Each input is read once, out is written once; no memory in proportion to the length
        (reference: about 20 bytes an element).
    Source
        The definition of a task vector, θ_aligned − θ_base; contract 1 of docs/design.md.
    """
    implementation = registry.resolve("diff", backend)
    length = base.array.size
    check_operand(base, "base", length)
    check_operand(aligned, "aligned", length)
    check_operand(out, "out", length)
    check_output(out, base, [aligned], "aligned")
    check_threads(threads)
    nonfinite, zeros = implementation.run(base, aligned, out, threads)
    return DiffStats(nonfinite, zeros)
