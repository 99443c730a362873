"""Identities of the contract, with their exceptions."""

from __future__ import annotations

import numpy as np
import pytest

from avops.dtypes import BF16, COMPUTABLE, F16, F32, DType
from avops.kernels import Operand, Term, combine, diff
from avops.kernels.combine import cases as combine_cases
from avops.kernels.samples import BLOCK, sample
from guarded import Guarded, pattern

SIGN = {F32: 0x80000000, F16: 0x8000, BF16: 0x8000}
INFINITY = {F32: 0x7F800000, F16: 0x7C00, BF16: 0x7F80}
# |base| / |aligned| up to which aligned - base is exact: 2^(24 - bits of significand), see combine.
RATIO = {F16: 2.0**13, BF16: 2.0**16}


def all_patterns() -> np.ndarray:
    return np.arange(1 << 16, dtype=np.uint16)


def values(bits: np.ndarray, dtype: DType) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # signalling NaN among the patterns
        if dtype == BF16:
            return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
        return bits.view(dtype.storage).astype(np.float64)


@pytest.mark.parametrize("dtype", COMPUTABLE, ids=str)
def test_no_terms_gives_the_base(dtype: DType, backend: str) -> None:
    base = sample("weights", dtype, BLOCK + 1, np.random.default_rng(0))
    out = Guarded(BLOCK + 1, dtype)
    stats = combine(base, (), out.operand, backend=backend)
    np.testing.assert_array_equal(out.bits(), pattern(base))
    assert (stats.nonfinite, stats.unchanged) == (0, BLOCK + 1)


@pytest.mark.parametrize("lam", [0.0, -0.0])
@pytest.mark.parametrize("dtype", [F16, BF16], ids=str)
def test_lam_zero_gives_the_base(dtype: DType, lam: float, backend: str) -> None:
    bits = all_patterns()
    base = Operand(bits.view(dtype.storage), dtype)
    delta = Operand(np.ones(bits.size, np.float32), F32)
    out = Guarded(bits.size, dtype)
    combine(base, [Term(delta, lam, False)], out.operand, backend=backend)
    expected = bits.copy()
    nan = (bits & ~np.uint16(SIGN[dtype])) > INFINITY[dtype]
    expected[nan] = {F16: 0x7E00, BF16: 0x7FC0}[dtype]
    if not np.signbit(lam):
        expected[SIGN[dtype]] = 0  # the exception: -0 + +0 is +0
    np.testing.assert_array_equal(out.bits(), expected)


@pytest.mark.parametrize("dtype", COMPUTABLE, ids=str)
def test_a_model_merged_with_itself_is_itself(dtype: DType, backend: str) -> None:
    base = sample("weights", dtype, 4099, np.random.default_rng(1))
    base.array[pattern(base) == SIGN[dtype]] = 0
    terms = [Term(Operand(base.array.copy(), dtype), lam, True) for lam in (-1.5, 1.0, 0.25)]
    out = Guarded(4099, dtype)
    stats = combine(base, terms, out.operand, backend=backend)
    np.testing.assert_array_equal(out.bits(), pattern(base))
    assert stats.unchanged == 4099


@pytest.mark.parametrize("dtype", [F16, BF16], ids=str)
def test_one_aligned_term_at_lam_one_gives_its_bits(dtype: DType) -> None:
    """All 2^16 aligned patterns on 600 bases: equal, except where the contract says otherwise."""
    aligned = all_patterns()
    wanted = values(aligned, dtype)
    finite = np.isfinite(wanted)
    rng = np.random.default_rng(0)
    edges = [0, SIGN[dtype], 1, INFINITY[dtype] - 1, SIGN[dtype] | (INFINITY[dtype] - 1)]
    exceptions = 0
    for bits in [*edges, *rng.integers(0, 1 << 16, 600)]:
        base = np.full(1 << 16, bits, np.uint16)
        origin = values(base[:1], dtype)[0]
        if not np.isfinite(origin):
            continue
        out = Guarded(1 << 16, dtype)
        combine(
            Operand(base.view(dtype.storage), dtype),
            [Term(Operand(aligned.view(dtype.storage), dtype), 1.0, True)],
            out.operand,
        )
        got = out.bits()
        assert got[SIGN[dtype]] == 0  # -0 becomes +0
        with np.errstate(invalid="ignore", over="ignore"):
            sure = finite & (np.abs(origin) <= RATIO[dtype] * np.abs(wanted))
            sure &= np.isfinite((wanted - origin).astype(np.float32))
        sure[SIGN[dtype]] = False
        np.testing.assert_array_equal(got[sure], aligned[sure])
        exceptions += int((got != aligned)[finite & ~sure].sum())
    assert exceptions > 0  # they exist: the bound is no empty one


def test_the_bound_of_the_aligned_identity_is_sharp() -> None:
    # |base| is 2^17 and |aligned| just under 2: the first ratio above 2^16 in BF16.
    base = Operand(np.array([0x4800], np.uint16), BF16)
    aligned = Operand(np.array([0xBFFF], np.uint16), BF16)
    out = Guarded(1, BF16)
    combine(base, [Term(aligned, 1.0, True)], out.operand)
    assert out.bits()[0] == 0xC000


def test_f32_aligned_is_exact_between_half_and_twice_the_base(backend: str) -> None:
    rng = np.random.default_rng(3)
    base = rng.normal(0, 0.02, 100_000).astype(np.float32)
    aligned = (base * rng.uniform(0.5001, 1.9999, base.size)).astype(np.float32)
    out = Guarded(base.size, F32)
    combine(Operand(base, F32), [Term(Operand(aligned, F32), 1.0, True)], out.operand,
            backend=backend)  # fmt: skip
    np.testing.assert_array_equal(out.bits(), aligned.view(np.uint32))


@pytest.mark.parametrize("dtype", COMPUTABLE, ids=str)
def test_a_stored_f32_delta_equals_its_aligned_weights(dtype: DType, backend: str) -> None:
    case = combine_cases.Case(5003, dtype, dtype, ((dtype, True),) * 2)
    base, terms = case.inputs()
    direct, stored = Guarded(case.n, dtype), Guarded(case.n, dtype)
    stats = combine(base, terms, direct.operand, backend=backend)
    deltas = []
    for term in terms:
        delta = Operand(np.empty(case.n, np.float32), F32)
        diff(base, term.values, delta, backend=backend)
        deltas.append(Term(delta, term.lam, False))
    assert combine(base, deltas, stored.operand, backend=backend) == stats
    np.testing.assert_array_equal(stored.bits(), direct.bits())


@pytest.mark.parametrize(("lam", "expected"), [(0.5, [130, 130, 132]), (-0.5, [128, 130, 130])])
def test_ties_at_half_go_to_even(lam: float, expected: list[int], backend: str) -> None:
    # In [128, 256) an ulp of BF16 is 1: base 129, 130, 131 plus or minus a half.
    base = Operand(np.array([0x4301, 0x4302, 0x4303], np.uint16), BF16)
    one = Operand(np.ones(3, np.float32), F32)
    out = Guarded(3, BF16)
    combine(base, [Term(one, lam, False)], out.operand, backend=backend)
    assert values(out.bits(), BF16).tolist() == expected
