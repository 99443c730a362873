"""Every operation x backend x case against its reference, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest

from avops.dtypes import BF16, COMPUTABLE, F16, F32, DType
from avops.kernels import Operand, Term, combine, diff
from avops.kernels.combine import cases as combine_cases
from avops.kernels.diff import cases as diff_cases
from avops.kernels.samples import BLOCK, FILLS, TWO_THREADS
from guarded import Guarded, pattern


def copied(operand: Operand, offset: int) -> Operand:
    return Guarded.copy(operand, offset).operand


@pytest.mark.parametrize("case", list(combine_cases.cases()), ids=str)
def test_combine(case: combine_cases.Case, fast_backend: str) -> None:
    base, terms = case.inputs()
    expected, got = Guarded(case.n, case.out), Guarded(case.n, case.out)
    stats = combine(base, terms, expected.operand, backend="reference")
    assert combine(base, terms, got.operand, backend=fast_backend) == stats
    np.testing.assert_array_equal(got.bits(), expected.bits())


@pytest.mark.parametrize("case", list(diff_cases.cases()), ids=str)
def test_diff(case: diff_cases.Case, fast_backend: str) -> None:
    base, aligned = case.inputs()
    expected, got = Guarded(case.n, case.out), Guarded(case.n, case.out)
    stats = diff(base, aligned, expected.operand, backend="reference")
    assert diff(base, aligned, got.operand, backend=fast_backend) == stats
    np.testing.assert_array_equal(got.bits(), expected.bits())


@pytest.mark.parametrize("threads", [1, 2, 3, 7, 64, 1024])
@pytest.mark.parametrize("n", [0, 1, BLOCK + 1, TWO_THREADS, 2 * TWO_THREADS + 77])
def test_any_thread_count_gives_the_same(n: int, threads: int, fast_backend: str) -> None:
    case = combine_cases.Case(n, BF16, BF16, ((BF16, True), (F32, False)), "bits")
    base, terms = case.inputs()
    expected, got = Guarded(n, BF16), Guarded(n, BF16)
    stats = combine(base, terms, expected.operand, backend="reference")
    assert combine(base, terms, got.operand, threads=threads, backend=fast_backend) == stats
    np.testing.assert_array_equal(got.bits(), expected.bits())

    delta, delta_got = Guarded(n, F32), Guarded(n, F32)
    aligned = terms[0].values
    found = diff(base, aligned, delta.operand, backend="reference")
    assert diff(base, aligned, delta_got.operand, threads=threads, backend=fast_backend) == found
    np.testing.assert_array_equal(delta_got.bits(), delta.bits())


@pytest.mark.parametrize("offset", [1, 2, 3, 7, 63])
@pytest.mark.parametrize("dtype", COMPUTABLE, ids=str)
def test_any_alignment(dtype: DType, offset: int, fast_backend: str) -> None:
    n = 2 * BLOCK + 3
    case = combine_cases.Case(n, dtype, dtype, ((dtype, True), (dtype, False)), "bits")
    base, terms = case.inputs()
    expected = Guarded(n, dtype)
    stats = combine(base, terms, expected.operand, backend="reference")
    moved = [Term(copied(t.values, offset + i), t.lam, t.aligned) for i, t in enumerate(terms)]
    got = Guarded(n, dtype, offset)
    assert combine(copied(base, offset + 2), moved, got.operand, backend=fast_backend) == stats
    np.testing.assert_array_equal(got.bits(), expected.bits())

    delta, delta_got = Guarded(n, dtype), Guarded(n, dtype, offset)
    found = diff(base, terms[0].values, delta.operand, backend="reference")
    moved_base = copied(base, offset + 2)
    assert diff(moved_base, moved[0].values, delta_got.operand, backend=fast_backend) == found
    np.testing.assert_array_equal(delta_got.bits(), delta.bits())


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("dtype", COMPUTABLE, ids=str)
def test_in_place(dtype: DType, fill: str, backend: str) -> None:
    n = TWO_THREADS + 3
    case = combine_cases.Case(n, dtype, dtype, ((dtype, True), (F32, False)), fill)
    base, terms = case.inputs()
    expected, got = Guarded(n, dtype), Guarded.copy(base)
    stats = combine(base, terms, expected.operand, backend="reference")
    there = got.operand
    # A second view of the same memory is the same memory.
    out = Operand(there.array[:], dtype)
    assert combine(there, terms, out, threads=2, backend=backend) == stats
    np.testing.assert_array_equal(got.bits(), expected.bits())

    delta, delta_got = Guarded(n, dtype), Guarded.copy(base)
    found = diff(base, terms[0].values, delta.operand, backend="reference")
    there = delta_got.operand
    assert diff(there, terms[0].values, there, threads=2, backend=backend) == found
    np.testing.assert_array_equal(delta_got.bits(), delta.bits())


def test_inputs_may_share_memory_and_be_read_only(fast_backend: str) -> None:
    case = combine_cases.Case(BLOCK + 1, F16, BF16, ((F16, True),))
    base, (term,) = case.inputs()
    base.array.flags.writeable = False
    terms = [Term(base, 0.5, True), term, term, Term(base, -1.0, False)]
    expected, got = Guarded(case.n, BF16), Guarded(case.n, BF16)
    before = base.array.copy(), term.values.array.copy()
    stats = combine(base, terms, expected.operand, backend="reference")
    assert combine(base, terms, got.operand, backend=fast_backend) == stats
    np.testing.assert_array_equal(got.bits(), expected.bits())
    np.testing.assert_array_equal(pattern(base), before[0].view(np.uint16))
    np.testing.assert_array_equal(pattern(term.values), before[1].view(np.uint16))


def test_many_terms(fast_backend: str) -> None:
    case = combine_cases.Case(100, BF16, F32, ((BF16, True),))
    base, (term,) = case.inputs()
    terms = [Term(term.values, float(np.float32(0.1 * k)), bool(k % 2)) for k in range(300)]
    expected, got = Guarded(100, F32), Guarded(100, F32)
    stats = combine(base, terms, expected.operand, backend="reference")
    assert combine(base, tuple(terms), got.operand, backend=fast_backend) == stats
    np.testing.assert_array_equal(got.bits(), expected.bits())


def test_counts(backend: str) -> None:
    nan, inf = np.nan, np.inf
    base = Operand(np.array([1.0, -0.0, 3e38, nan, 2.0, inf, -1.0], np.float32), F32)
    delta = Operand(np.array([1e-9, 0.0, 3e38, 1.0, 1.0, -inf, 0.0], np.float32), F32)
    out = Guarded(7, F32)
    stats = combine(base, [Term(delta, 1.0, False)], out.operand, backend=backend)
    # 1 + 1e-9 = 1: unchanged. -0 + 0 = +0: changed. 3e38 + 3e38 = inf. NaN: unchanged. inf - inf.
    assert (stats.nonfinite, stats.unchanged) == (3, 3)
    expected = [1.0, 0.0, inf, nan, 3.0, nan, -1.0]
    np.testing.assert_array_equal(
        out.bits() & 0x7FFFFFFF, np.abs(np.array(expected, np.float32)).view(np.uint32)
    )
    found = diff(base, Operand(base.array.copy(), F32), out.operand, backend=backend)
    assert (found.nonfinite, found.zeros) == (2, 5)


def test_unchanged_is_counted_after_rounding_the_base(backend: str) -> None:
    # f32 base, f16 output: 70000 rounds to infinity; 70000 - 69999 = 1 is no infinity. The others
    # round to the same f16 with and without their delta, or to the next one.
    base = Operand(np.array([70000.0, 1.00001, 1.00001, 70000.0], np.float32), F32)
    delta = Operand(np.array([-69999.0, 1e-5, 1e-2, 5.0], np.float32), F32)
    out = Guarded(4, F16)
    stats = combine(base, [Term(delta, 1.0, False)], out.operand, backend=backend)
    assert (stats.nonfinite, stats.unchanged) == (1, 2)
    alone = combine(Operand(base.array[:3], F32), [Term(Operand(delta.array[:3], F32), 1.0, False)],
                    Guarded(3, F16).operand, backend=backend)  # fmt: skip
    assert (alone.nonfinite, alone.unchanged) == (0, 1)
