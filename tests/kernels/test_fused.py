"""The fused kernels of 16-bit dtypes: whole passes, rests, and passes done again for an event."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import numpy as np
import pytest

from avops.dtypes import BF16, F16, F32, DType
from avops.kernels import CombineStats, Dither, Operand, Term, combine, dither_key
from avops.kernels.combine.cases import Case
from avops.kernels.rounding import narrow, uniform, widen
from avops.kernels.samples import FILLS, FUSED, FUSED_TERMS, TWO_THREADS
from guarded import Guarded

CSRC = Path(__file__).parents[2] / "csrc"
DTYPES = pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
ROUNDINGS = pytest.mark.parametrize(
    "rounding", [None, Dither(dither_key(3, "w"), 2**32 - FUSED - 700)], ids=["nearest", "dither"]
)
LENGTHS = (1, 2, 7, 8, 9, FUSED - 1, FUSED, FUSED + 1, 3 * FUSED + 13)


def test_the_numbers_are_twins() -> None:
    source = (CSRC / "fused.h").read_text(encoding="utf-8")
    found = [int(re.findall(rf"{name} = (\d+);", source)[0]) for name in ("kFused", "kFusedTerms")]
    assert found == [FUSED, FUSED_TERMS]


@ROUNDINGS
@pytest.mark.parametrize("aligned", [True, False], ids=["aligned", "delta"])
@pytest.mark.parametrize("count", range(1, FUSED_TERMS + 2))
@DTYPES
def test_conformance(
    dtype: DType, count: int, aligned: bool, rounding: Dither | None, fast_backend: str
) -> None:
    for n, fill in itertools.product(LENGTHS, FILLS):
        base, terms = Case(n, dtype, dtype, ((dtype, aligned),) * count, fill).inputs()
        expected, got, there = Guarded(n, dtype), Guarded(n, dtype, 1), Guarded.copy(base, 3)
        stats = combine(base, terms, expected.operand, rounding=rounding, backend="reference")
        for source, out in ((base, got), (there.operand, there)):
            found = combine(source, terms, out.operand, rounding=rounding, backend=fast_backend)
            assert found == stats, (n, fill)
            np.testing.assert_array_equal(out.bits(), expected.bits())


@ROUNDINGS
@DTYPES
def test_any_thread_count(dtype: DType, rounding: Dither | None, fast_backend: str) -> None:
    n = 2 * TWO_THREADS + 77
    base, terms = Case(n, dtype, dtype, ((dtype, True),)).inputs()
    expected = Guarded(n, dtype)
    stats = combine(base, terms, expected.operand, rounding=rounding, backend="reference")
    for threads in (1, 2, 3):
        got = Guarded(n, dtype)
        found = combine(
            base, terms, got.operand, rounding=rounding, threads=threads, backend=fast_backend
        )
        assert found == stats
        np.testing.assert_array_equal(got.bits(), expected.bits())


# Patterns of the largest finite value, the smallest above zero, and half an ulp of the largest.
LARGEST = {BF16: 0x7F7F, F16: 0x7BFF}
TINY = 0x0001
HALF = {BF16: 0x7B00, F16: 0x4C00}
NOTHING, FLUSH, OVERFLOW, NAN = (0, 0, 0), (0, 0, 1), (1, 1, 0), (1, 0, 0)


def planted(dtype: DType, at: int, base: int, delta: int) -> tuple[Operand, Operand]:
    """Base and delta: ones and eighths, but for one element, whose patterns are given."""
    n = 3 * FUSED + 5
    arrays = []
    for usual, pattern in ((1.0, base), (0.125, delta)):
        array = narrow(np.full(n, usual, np.float32), dtype)
        array.view(np.uint16)[at] = pattern
        arrays.append(Operand(array, dtype))
    return arrays[0], arrays[1]


def counted(stats: CombineStats) -> tuple[int, int, int]:
    return stats.nonfinite, stats.overflowed, stats.flushed


@ROUNDINGS
@pytest.mark.parametrize("at", [0, 1, FUSED - 1, FUSED, 2 * FUSED + 6, 3 * FUSED + 4])
@DTYPES
def test_one_event_anywhere_is_counted(
    dtype: DType, at: int, rounding: Dither | None, backend: str
) -> None:
    nan, infinity, one = {BF16: (0x7F81, 0xFF80, 0x3F80), F16: (0x7C01, 0xFC00, 0x3C00)}[dtype]
    events = {
        "nan": (nan, one, NAN),
        "infinity": (infinity, one, NAN),
        "zero": (one, one | 0x8000, NOTHING),
        # Twice the largest bf16 number is none of f32 either.
        "overflow": (LARGEST[dtype], LARGEST[dtype], NAN if dtype == BF16 else OVERFLOW),
    }
    for name, (base, delta, expected) in events.items():
        out, values = planted(dtype, at, base, delta)
        terms = [Term(values, 1.0, False)]
        stats = combine(out, terms, out, rounding=rounding, backend=backend)
        assert counted(stats) == expected, name


@pytest.mark.parametrize("path", ["fused", "general"])
@DTYPES
def test_borders_of_nearest_rounding(dtype: DType, path: str, backend: str) -> None:
    """λ puts the sum at the last value that is an event, and at the first that is none."""
    up = 2.0**-15 if dtype == BF16 else 2.0**-23  # one f32 step at half of TINY
    down = 2.0**-15 if dtype == BF16 else 2.0**-12  # one f32 step at LARGEST, in HALF
    least = 2.0**-16 if dtype == BF16 else 2.0**-125  # of TINY: 2^-149
    for base, delta, lam, expected in (
        (0, TINY, least, FLUSH),
        (0, TINY, 0.5, FLUSH),
        (0, TINY, 0.5 * (1 + up), NOTHING),
        (LARGEST[dtype], HALF[dtype], 1.0, OVERFLOW),
        (LARGEST[dtype], HALF[dtype], 1 - down, NOTHING),
    ):
        for sign in (0, 0x8000):
            origin, values = planted(dtype, FUSED + 3, base | sign, delta | sign)
            if path == "general":
                values = Operand(widen(values), F32)
            out = Guarded(origin.array.size, dtype)
            stats = combine(origin, [Term(values, lam, False)], out.operand, backend=backend)
            assert counted(stats) == expected, (hex(base), lam)


@pytest.mark.parametrize("path", ["fused", "general"])
@DTYPES
def test_borders_of_dithered_rounding(dtype: DType, path: str, backend: str) -> None:
    """The extremes of u decide about one f32 step below an ulp, and above the largest value."""
    bits = 16 if dtype == BF16 else 13
    ulps = uniform(5, 0, 1 << 19) >> (32 - bits)
    step = {BF16: 0x7380, F16: 0x1C00}[dtype]  # one f32 step at LARGEST: 2^104, 2^-8
    for base, delta, lam, u, expected in (
        (0, TINY, 1 - 2.0**-bits, 0, FLUSH),
        (0, TINY, 1 - 2.0**-bits, 1, NOTHING),
        (LARGEST[dtype], step, 1.0, (1 << bits) - 1, OVERFLOW),
        (LARGEST[dtype], step, 1.0, (1 << bits) - 2, NOTHING),
    ):
        at = FUSED + 3
        (index,) = np.flatnonzero(ulps[at:] == u)[:1]  # each of the 2^bits values comes 8 times
        origin, values = planted(dtype, at, base, delta)
        if path == "general":
            values = Operand(widen(values), F32)
        out = Guarded(origin.array.size, dtype)
        terms = [Term(values, lam, False)]
        stats = combine(origin, terms, out.operand, rounding=Dither(5, int(index)), backend=backend)
        assert counted(stats) == expected, (hex(base), u)


@pytest.mark.parametrize("edge", [1, 2, FUSED // 2, FUSED - 1, FUSED, FUSED + 1])
def test_dither_through_a_multiple_of_2_to_the_32(edge: int, backend: str) -> None:
    """The hash changes its words inside, at the start and at the end of a pass."""
    n = 2 * FUSED
    base, terms = Case(n, BF16, BF16, ((BF16, True),) * 2).inputs()
    key, start = dither_key(0, "w"), 5 * 2**32 - edge
    whole, parts = Guarded(n, BF16), Guarded(n, BF16)
    combine(base, terms, whole.operand, rounding=Dither(key, start), backend=backend)
    for here in (slice(0, edge), slice(edge, n)):
        combine(
            Operand(base.array[here], BF16),
            [Term(Operand(t.values.array[here], BF16), t.lam, t.aligned) for t in terms],
            Operand(parts.operand.array[here], BF16),
            rounding=Dither(key, start + here.start),
            backend="reference",
        )
    np.testing.assert_array_equal(whole.bits(), parts.bits())
