"""lowrank: every case against the reference, and the reference against the contract."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from avops.dtypes import BF16, F16, F32
from avops.errors import BackendError
from avops.kernels import Factors, Operand, factors, lowrank
from avops.kernels.lowrank import cases as module
from avops.kernels.lowrank.cases import Case, cases
from guarded import Guarded


@pytest.mark.parametrize("case", list(cases()), ids=str)
def test_conformance(case: Case, fast_backend: str) -> None:
    given = case.factors()
    expected, got = Guarded(case.n, F32), Guarded(case.n, F32)
    lowrank(given, case.start, expected.operand, backend="reference")
    lowrank(given, case.start, got.operand, backend=fast_backend)
    np.testing.assert_array_equal(got.bits(), expected.bits())


@pytest.mark.parametrize("case", [c for c in cases() if c.n and c.fill == "weights"][::7], ids=str)
def test_the_reference_is_the_contract(case: Case) -> None:
    """Element by element in Python, rounded to float32 after every step."""
    given, out = case.factors(), np.empty(case.n, np.float32)
    lowrank(given, case.start, Operand(out, F32), backend="reference")
    for i in range(0, case.n, max(1, case.n // 50)):
        row, column = divmod(case.start + i, case.columns)
        total = given.left[row, 0] * given.right[0, column]
        for j in range(1, case.rank):
            total = np.float32(total + np.float32(given.left[row, j] * given.right[j, column]))
        assert out[i] == np.float32(np.float32(given.scale) * total)


@pytest.mark.parametrize("transposed", [False, True])
def test_which_factor_is_which(transposed: bool) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(-4, 5, (3, 5)), rng.integers(-4, 5, (7, 3))  # whole numbers: exact
    flat = [Operand(x.astype(np.float16).reshape(-1), F16) for x in (a, b)]
    given = factors(*flat, rank=3, scale=0.5, transposed=transposed)
    expected = 0.5 * (b @ a)
    expected = expected.T if transposed else expected
    assert given.shape == expected.shape
    out = np.empty(35, np.float32)
    lowrank(given, 0, Operand(out, F32))
    np.testing.assert_array_equal(out.reshape(expected.shape), expected)


@pytest.mark.parametrize("threads", [1, 2, 5, 64])
def test_any_thread_count_and_cut_give_the_same(threads: int, fast_backend: str) -> None:
    case = Case(1031, 517, 16, 0, 1031 * 517, BF16, BF16)
    given = case.factors()
    whole, cut = Guarded(case.n, F32), Guarded(case.n, F32)
    lowrank(given, 0, whole.operand, threads=threads, backend=fast_backend)
    for start in range(0, case.n, 100_003):
        part = Operand(cut.operand.array[start : start + 100_003], F32)
        lowrank(given, start, part, backend=fast_backend)
    np.testing.assert_array_equal(whole.bits(), cut.bits())


@pytest.mark.parametrize("offset", [1, 2, 3])
def test_any_alignment_of_the_output(offset: int, fast_backend: str) -> None:
    case = Case(5, 131, 3, 7, 600)
    expected, got = Guarded(case.n, F32), Guarded(case.n, F32, offset)
    lowrank(case.factors(), case.start, expected.operand, backend="reference")
    lowrank(case.factors(), case.start, got.operand, backend=fast_backend)
    np.testing.assert_array_equal(got.bits(), expected.bits())


def test_what_does_not_fit_is_refused() -> None:
    flat = Operand(np.zeros(6, np.float32), F32)
    with pytest.raises(ValueError, match="a has 6 elements of rank 4, expected rank × length"):
        factors(flat, flat, rank=4, scale=1.0, transposed=False)
    with pytest.raises(ValueError, match="rank 0"):
        factors(flat, flat, rank=0, scale=1.0, transposed=False)
    with pytest.raises(ValueError, match=r"scale is 0.1, expected a finite number that f32 holds"):
        factors(flat, flat, rank=2, scale=0.1, transposed=False)
    given = factors(flat, flat, rank=2, scale=1.0, transposed=False)
    for start, n in ((0, 10), (9, 1), (-1, 2)):
        with pytest.raises(ValueError, match=r"elements from .*, expected some of 0 to 9"):
            lowrank(given, start, Operand(np.zeros(n, np.float32), F32))
    with pytest.raises(TypeError, match="out has dtype BF16, expected F32"):
        lowrank(given, 0, Operand(np.zeros(2, np.uint16), BF16))
    with pytest.raises(ValueError, match="threads is 0"):
        lowrank(given, 0, flat, threads=0)
    with pytest.raises(BackendError, match="expected a backend of lowrank"):
        lowrank(given, 0, flat, backend="cuda")


def test_factors_that_do_not_fit_are_refused() -> None:
    good = np.zeros((3, 2), np.float32)
    for left, right, error, message in (
        (good.astype(np.float64), good.T.copy(), TypeError, "left is stored as float64"),
        (good, good.T, ValueError, r"right has shape \(2, 3\) .* expected a contiguous matrix"),
        (good[0], good, ValueError, r"left has shape \(2,\) .* expected a contiguous matrix"),
        (good, good, ValueError, "left has 2 columns, right 3 rows, expected one rank"),
        (good[:, :0].copy(), good[:0], ValueError, "left has 0 columns, right 0 rows"),
    ):
        with pytest.raises(error, match=message):
            Factors(left, right, 1.0)
    with pytest.raises(ValueError, match="scale is inf"):
        Factors(good, good.T.copy(), float("inf"))


def test_an_output_that_cannot_be_written_is_refused() -> None:
    left, right = np.zeros((3, 2), np.float32), np.zeros((2, 3), np.float32)
    given = Factors(left, right, 1.0)
    for index, factor in enumerate((left, right)):
        with pytest.raises(
            ValueError, match=f"out overlaps factor {index}; give it memory of its own"
        ):
            lowrank(given, 0, Operand(factor.reshape(-1), F32))
    out = np.zeros(3, np.float32)
    out.flags.writeable = False
    with pytest.raises(ValueError, match="out is read-only"):
        lowrank(given, 0, Operand(out, F32))


def test_an_empty_part_touches_nothing() -> None:
    given = Factors(np.empty((0, 2), np.float32), np.empty((2, 0), np.float32), 1.0)
    lowrank(given, 0, Operand(np.empty(0, np.float32), F32))


def test_the_tile_sizes_are_twins() -> None:
    source = "".join(
        (Path(__file__).parents[2] / "csrc" / name).read_text(encoding="utf-8")
        for name in ("lowrank.h", "lowrank.cpp")
    )
    assert f"kPanel = {module.COLUMNS};" in source
    assert f"kRows = {module.ROWS}, kDepth = {module.DEPTH};" in source
    assert f"kPackFrom = {module.PACKED};" in source
