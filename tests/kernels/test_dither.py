"""Dithered rounding: unbiased over weights, monotone for each, exact where rounding is."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from avops.dtypes import BF16, COMPUTABLE, F16, F32, DType
from avops.kernels import Dither, Operand, Term, combine, dither_key
from avops.kernels.combine.cases import Case
from avops.kernels.rounding import dither, narrow, uniform, widen
from avops.kernels.samples import BLOCK, FILLS, TWO_THREADS, sample
from guarded import Guarded

NARROW = (BF16, F16)
KEY = dither_key(1, "model.layers.0.mlp.up_proj.weight")


def rounded(values: np.ndarray, dtype: DType, key: int = KEY, start: int = 0) -> np.ndarray:
    with np.errstate(all="ignore"):
        return widen(Operand(dither(values, dtype, Dither(key, start)), dtype))


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("n", [0, 1, 17, BLOCK, BLOCK + 1, 1999, TWO_THREADS + 1])
@pytest.mark.parametrize("out", COMPUTABLE, ids=str)
def test_conformance(out: DType, n: int, fill: str, fast_backend: str) -> None:
    for base_dtype, kinds in (
        (BF16, ((BF16, True), (F32, False))),
        (F32, ()),
        (F16, ((F16, True),)),
    ):
        base, terms = Case(n, base_dtype, out, kinds, fill).inputs()
        expected, got = Guarded(n, out), Guarded(n, out)
        how = Dither(KEY, 2**32 - 700)  # indices go through 2^32
        stats = combine(base, terms, expected.operand, rounding=how, backend="reference")
        found = combine(base, terms, got.operand, rounding=how, threads=2, backend=fast_backend)
        assert found == stats
        np.testing.assert_array_equal(got.bits(), expected.bits())


@pytest.mark.parametrize("cut", [1, 7, 300, BLOCK, 1000])
def test_cuts_do_not_change_the_result(cut: int, backend: str) -> None:
    n, start = 1500, 3 * 2**32 - 801
    base, (term,) = Case(n, BF16, BF16, ((F32, False),)).inputs()
    whole, parts = Guarded(n, BF16), Guarded(n, BF16)
    combine(base, [term], whole.operand, rounding=Dither(KEY, start), backend=backend)
    for i in range(0, n, cut):
        here = slice(i, i + cut)
        combine(
            Operand(base.array[here], BF16),
            [Term(Operand(term.values.array[here], F32), term.lam, False)],
            Operand(parts.operand.array[here], BF16),
            rounding=Dither(KEY, start + i),
            backend=backend,
        )
    np.testing.assert_array_equal(parts.bits(), whole.bits())


@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_exact_values_stay(dtype: DType) -> None:
    """Every finite pattern of the dtype, under several keys."""
    values = widen(Operand(np.arange(1 << 16, dtype=np.uint16).view(dtype.storage), dtype))
    values = values[np.isfinite(values)]
    for key in range(5):
        np.testing.assert_array_equal(rounded(values, dtype, key).view("u4"), values.view("u4"))


def test_what_is_not_finite() -> None:
    values = np.array([np.nan, -np.nan, np.inf, -np.inf], np.float32)
    for dtype, nan in ((BF16, 0x7FC0), (F16, 0x7E00)):
        for key in range(20):
            found = dither(values, dtype, Dither(key, 0)).view("u2")
            assert found[:2].tolist() == [nan, nan]
        infinite = rounded(values, dtype)[2:]
        assert infinite.tolist() == [np.inf, -np.inf]
    base = Operand(values, F32)
    out = Guarded(4, F32)
    combine(base, (), out.operand, rounding=Dither(0, 0))
    np.testing.assert_array_equal(out.bits(), narrow(values, F32).view("u4"))


@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_the_result_is_one_of_the_two_neighbours(dtype: DType) -> None:
    values = sample("bits", F32, 200_000, np.random.default_rng(0)).array.copy()
    limit = 65504 if dtype == F16 else float(np.float32(3.3895314e38))
    values = values[np.abs(values) <= limit]
    found = rounded(values, dtype).astype(np.float64)
    exact = np.abs(values.astype(np.float64))
    # One ulp: of 8 significant bits and 2^-133 at least, or of 11 and 2^-24.
    bits, least = (8, -133) if dtype == BF16 else (11, -24)
    exponent = np.floor(np.log2(np.where(exact > 0, exact, 1)))
    ulp = 2.0 ** np.maximum(exponent - (bits - 1), least)
    assert (np.signbit(found) == np.signbit(values)).all()
    low = np.floor(exact / ulp) * ulp
    assert ((np.abs(found) == low) | (np.abs(found) == low + ulp)).all()


@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_monotone_for_each_weight(dtype: DType) -> None:
    """Across binades, subnormals, zero and the border of overflow."""
    rng = np.random.default_rng(1)
    edges = [
        0.0,
        2.0**-25,
        2.0**-24,
        2.0**-14,
        2.0**-126,
        2.0**-133,
        1.0,
        65504,
        65520,
        65536,
        3.4e38,
    ]
    near = np.array([x * (1 + s * e) for x in edges for s in (-1, 1) for e in (0, 1e-7, 1e-4)])
    some = sample("bits", F32, 3000, rng).array
    values = np.unique(np.concatenate([near, -near, some[np.isfinite(some)]]).astype(np.float32))
    for index in range(20):
        one = np.concatenate(
            [rounded(values[i : i + 1], dtype, 3, index) for i in range(len(values))]
        )
        assert (one[1:] >= one[:-1]).all()


@pytest.mark.parametrize("dtype", NARROW, ids=str)
@pytest.mark.parametrize("fraction", [1 / 64, 0.25, 0.5, 0.9])
def test_unbiased_over_weights(dtype: DType, fraction: float) -> None:
    """The share of weights rounded up is the fraction that is dropped, subnormals included."""
    n = 1 << 18
    least, ulp = (2.0**-133, 2.0**-7) if dtype == BF16 else (2.0**-24, 2.0**-10)
    for (value, unit), sign in itertools.product(
        ((1.0, ulp), (1.5, ulp), (3 * least, least)), (1, -1)
    ):
        values = np.full(n, sign * (value + fraction * unit), np.float32)
        exact = (abs(float(values[0])) - value) / unit
        up = (np.abs(rounded(values, dtype)) > value).mean()
        # A share of n Bernoulli draws has a standard deviation of sqrt(p (1 - p) / n): five of
        # them, and what 13 bits cannot express of a subnormal's fraction.
        bound = 5 * math.sqrt(exact * (1 - exact) / n) + (2.0**-13 if unit == least else 0)
        assert abs(up - exact) < bound


@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_errors_cancel_over_weights(dtype: DType) -> None:
    n = 1 << 18
    values = sample("weights", F32, n, np.random.default_rng(2)).array
    error = rounded(values, dtype).astype(np.float64) - values
    exponent = np.floor(np.log2(np.abs(values.astype(np.float64))))
    ulp = 2.0 ** np.maximum(exponent - (7 if dtype == BF16 else 10), -24 if dtype == F16 else -133)
    # Rounding up or down by u has a standard deviation of at most half an ulp; five of the mean's.
    assert abs((error / ulp).mean()) < 5 * 0.5 / math.sqrt(n)
    # The mean of n products of neighbours' errors has at most 1/4 / sqrt(n); five of them.
    relative = error / ulp
    assert abs((relative[1:] * relative[:-1]).mean()) < 5 * 0.25 / math.sqrt(n - 1)


def test_the_numbers_look_uniform_and_independent() -> None:
    n = 1 << 20
    r = uniform(KEY, 12345, n)
    for bits in (r >> 16, r & 0xFFFF):
        counts = np.bincount(bits >> 8, minlength=256)
        # chi-square of 255 degrees has mean 255 and variance 510; six standard deviations.
        chi = ((counts - n / 256) ** 2 / (n / 256)).sum()
        assert abs(chi - 255) < 6 * math.sqrt(510)
    x = r / 2**32 - 0.5
    for lag in (1, 2, 3, 64, 4096):
        # Products of independent uniforms on ±1/2 have variance 1/144; five standard deviations.
        assert abs((x[:-lag] * x[lag:]).mean()) < 5 / 12 / math.sqrt(n)
    other = uniform(dither_key(1, "another"), 12345, n) / 2**32 - 0.5
    assert abs((x * other).mean()) < 5 / 12 / math.sqrt(n)  # as above


def test_keys_are_of_seed_and_name() -> None:
    keys = {dither_key(seed, name) for seed in (0, 1) for name in ("a", "b", "")}
    assert len(keys) == 6
    assert all(0 <= key < 1 << 64 for key in keys)
    assert dither_key(0, "a") == dither_key(0, "a")
    # Fixed, so that outputs can be repeated with later versions.
    assert dither_key(7, "model.norm.weight") == 0x81CB054EB2870A7F
    assert uniform(1, 2**32 - 1, 2).tolist() == [3394422021, 3780794508]


def test_what_does_not_fit_is_refused() -> None:
    one = Operand(np.zeros(1, np.float32), F32)
    for key, start in ((-1, 0), (1 << 64, 0), (0, -1), (0, 1 << 62)):
        with pytest.raises(ValueError, match="expected a key of 64 bits and a start from 0 to"):
            combine(one, (), Guarded(1, BF16).operand, rounding=Dither(key, start))


@pytest.mark.parametrize("rounding", [None, Dither(5, 0)], ids=["nearest", "dither"])
def test_events_are_counted(rounding: Dither | None, backend: str) -> None:
    values = np.array([1e-30, 0.0, -1e-9, 1.0, 70000.0, np.inf, np.nan, -1e38], np.float32)
    zero = Operand(np.zeros(8, np.float32), F32)
    for base, terms in (
        (Operand(values, F32), []),
        (zero, [Term(Operand(values, F32), 1.0, False)]),
    ):
        out = Guarded(8, F16)
        stats = combine(base, terms, out.operand, rounding=rounding, backend=backend)
        assert (stats.overflowed, stats.nonfinite) == (2, 4)
        assert stats.flushed == 2
