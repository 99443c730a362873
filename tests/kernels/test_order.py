"""The reference against exact rational arithmetic: every rounding where the contract has it."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest

from avops.dtypes import BF16, COMPUTABLE, F16, F32, DType
from avops.kernels import Operand, Term, combine, diff
from avops.kernels.combine import cases as combine_cases
from avops.kernels.samples import FILLS
from guarded import Guarded, pattern

# (bits of significand with the hidden one, smallest exponent, largest exponent)
FORMATS = {F32: (24, -126, 127), F16: (11, -14, 15), BF16: (8, -126, 127)}


def rounded(value: Fraction, dtype: DType) -> Fraction | None:
    """``value`` to nearest, ties to even; None when it overflows."""
    digits, lowest, highest = FORMATS[dtype]
    if value == 0:
        return value
    size = abs(value)
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    if size < Fraction(2) ** exponent:
        exponent -= 1
    ulp = Fraction(2) ** (max(exponent, lowest) - digits + 1)
    result = round(value / ulp) * ulp  # Fraction.__round__ sends ties to even
    return result if abs(result) < Fraction(2) ** (highest + 1) else None


def exact(operand: Operand) -> list[Fraction]:
    bits = pattern(operand)
    if operand.dtype == BF16:
        return [Fraction(float(x)) for x in (bits.astype(np.uint32) << 16).view(np.float32)]
    return [Fraction(float(x)) for x in operand.array]


def finite(operand: Operand) -> Operand:
    """The same with NaN and infinities replaced by 1."""
    infinity, one = {F32: (0x7F800000, 0x3F800000), F16: (0x7C00, 0x3C00), BF16: (0x7F80, 0x3F80)}[
        operand.dtype
    ]
    bits = pattern(operand).copy()
    bits[(bits & infinity) == infinity] = one
    return Operand(bits.view(operand.dtype.storage), operand.dtype)


def expected_combine(
    base: Fraction, terms: list[tuple[Fraction, Fraction, bool]], out: DType
) -> Fraction | None:
    """The contract in rationals; None when an intermediate or the result overflows."""
    acc: Fraction | None = None
    for value, lam, aligned in terms:
        delta = rounded(value - base, F32) if aligned else value
        product = None if delta is None else rounded(lam * delta, F32)
        if product is None:
            return None
        acc = product if acc is None else rounded(acc + product, F32)
        if acc is None:
            return None
    total = base if acc is None else rounded(base + acc, F32)
    return None if total is None else rounded(total, out)


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize(("base", "out"), list(itertools.product(COMPUTABLE, COMPUTABLE)), ids=str)
def test_combine_rounds_where_the_contract_says(base: DType, out: DType, fill: str) -> None:
    n = 150
    drawn, terms = combine_cases.Case(n, base, out, combine_cases.KINDS, fill).inputs(seed=1)
    origin = finite(drawn)
    terms = [Term(finite(t.values), t.lam, t.aligned) for t in terms]
    made = Guarded(n, out)
    stats = combine(origin, terms, made.operand, backend="reference")

    columns = [exact(t.values) for t in terms]
    lams = [Fraction(t.lam) for t in terms]
    overflowed = 0
    got = made.operand
    wide = (
        (pattern(got).astype(np.uint32) << 16).view(np.float32) if out == BF16 else got.array
    ).astype(np.float64)
    for i, value in enumerate(exact(origin)):
        row = [(c[i], lam, t.aligned) for c, lam, t in zip(columns, lams, terms, strict=True)]
        expected = expected_combine(value, row, out)
        if expected is None:
            overflowed += 1
            assert not np.isfinite(wide[i])
        else:
            assert Fraction(float(wide[i])) == expected
    assert stats.nonfinite == overflowed
    if fill != "bits":
        assert overflowed == 0


@pytest.mark.parametrize("out", COMPUTABLE, ids=str)
def test_diff_rounds_where_the_contract_says(out: DType) -> None:
    n = 400
    drawn, (term,) = combine_cases.Case(n, F32, out, ((F32, False),), "bits").inputs(seed=2)
    base, aligned = finite(drawn), finite(term.values)
    aligned.array[::3] = base.array[::3] * np.float32(1.01)
    made = Guarded(n, out)
    diff(base, aligned, made.operand, backend="reference")
    narrow = exact(finite(made.operand))
    for i, (b, a) in enumerate(zip(exact(base), exact(aligned), strict=True)):
        difference = rounded(a - b, F32)
        expected = None if difference is None else rounded(difference, out)
        if expected is not None:
            assert narrow[i] == expected


def one(base: float, *terms: tuple[float, float], aligned: bool = False) -> np.float32:
    """Combine single f32 numbers; terms are (value, λ)."""
    out = Guarded(1, F32)
    combine(
        Operand(np.array([base], np.float32), F32),
        [Term(Operand(np.array([v], np.float32), F32), lam, aligned) for v, lam in terms],
        out.operand,
        backend="reference",
    )
    return np.float32(out.operand.array[0])


def test_each_step_has_its_place() -> None:
    ulp = 2.0**-23
    # Deltas first: 2^-24 + 2^-24 = an ulp of 1. Base first would round each of them away.
    assert one(1.0, (2.0**-24, 1.0), (2.0**-24, 1.0)) == np.float32(1 + ulp)
    # In recipe order: (2^24 + 1) - 2^24 = 0, but (2^24 - 2^24) + 1 = 1.
    assert one(0.0, (2.0**24, 1.0), (1.0, 1.0), (-(2.0**24), 1.0)) == 0
    assert one(0.0, (2.0**24, 1.0), (-(2.0**24), 1.0), (1.0, 1.0)) == 1
    # No FMA: (1 + ulp)^2 = 1 + 2 ulp + ulp^2 is rounded before 1 is subtracted.
    square = float(np.float32(1 + ulp))
    assert one(-1.0, (square, square)) == np.float32(2 * ulp)
    # The difference of an aligned term is rounded before the product: 2^24 + 1 is no f32 number.
    assert one(-1.0, (2.0**24, 1.0), aligned=True) == np.float32(2.0**24 - 1)


def test_signs_of_zero() -> None:
    def sign(x: np.float32) -> bool:
        assert x == 0
        return bool(np.signbit(x))

    assert sign(one(-0.0))
    assert sign(one(-0.0, (-0.0, 1.0)))
    assert sign(one(-0.0, (1.0, -0.0)))
    assert sign(one(-0.0, (0.0, -1.0), (0.0, -1.0)))
    assert not sign(one(-0.0, (0.0, 1.0)))
    assert not sign(one(0.0, (-0.0, 1.0)))
    assert not sign(one(1.0, (-1.0, 1.0)))
