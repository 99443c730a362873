"""Conversions against oracles that share nothing with them, through every backend.

combine without terms is plain conversion, so it carries every pattern to every dtype.
"""

from __future__ import annotations

import struct

import numpy as np
import pytest
import torch

from avops.dtypes import BF16, F16, F32, DType
from avops.kernels import Operand, Term, combine
from guarded import Guarded

NAN = {F32: 0x7FC00000, F16: 0x7E00, BF16: 0x7FC0}
TORCH = {F16: torch.float16, BF16: torch.bfloat16}
SIGNIFICAND = {F16: 11, BF16: 8}  # bits, with the hidden one


def convert(patterns: np.ndarray, source: DType, out: DType, backend: str) -> np.ndarray:
    """Patterns of ``source`` as patterns of ``out``."""
    made = Guarded(patterns.size, out)
    stats = combine(Operand(patterns.view(source.storage), source), (), made.operand,
                    threads=2, backend=backend)  # fmt: skip
    assert stats.unchanged == patterns.size
    return made.bits()


def all16() -> np.ndarray:
    return np.arange(1 << 16, dtype=np.uint16)


def values_of(dtype: DType) -> np.ndarray:
    """The value of every 16-bit pattern in f64, from Python's struct module."""
    raw = all16()
    if dtype == BF16:
        return np.array([struct.unpack("<f", struct.pack("<HH", 0, h))[0] for h in raw.tolist()])
    return np.array([struct.unpack("<e", struct.pack("<H", h))[0] for h in raw.tolist()])


@pytest.mark.parametrize("dtype", [F16, BF16], ids=str)
def test_widening_all_patterns_is_exact(dtype: DType, backend: str) -> None:
    got = convert(all16(), dtype, F32, backend)
    values = values_of(dtype)
    nan = np.isnan(values)
    assert (got[nan] == NAN[F32]).all()
    np.testing.assert_array_equal(got[~nan], values[~nan].astype(np.float32).view(np.uint32))


@pytest.mark.parametrize("dtype", [F16, BF16], ids=str)
def test_all_patterns_survive_the_round_trip(dtype: DType, backend: str) -> None:
    nan = np.isnan(values_of(dtype))
    expected = np.where(nan, NAN[dtype], all16()).astype(np.uint16)
    np.testing.assert_array_equal(convert(all16(), dtype, dtype, backend), expected)
    wide = convert(all16(), dtype, F32, backend)
    np.testing.assert_array_equal(convert(wide, F32, dtype, backend), expected)


@pytest.mark.parametrize(("source", "out"), [(F16, BF16), (BF16, F16)], ids=str)
def test_between_the_16_bit_types(source: DType, out: DType, backend: str) -> None:
    got = convert(all16(), source, out, backend)
    np.testing.assert_array_equal(got, nearest(values_of(source), out))


def nearest(values: np.ndarray, dtype: DType) -> np.ndarray:
    """Round to nearest, ties to even, by search in the sorted table of representable values.

    The step after the largest finite value stands for infinity, as IEEE 754 rounds.
    """
    table = values_of(dtype)[: 1 << 15]
    table = table[np.isfinite(table)]
    table = np.append(table, 2 * table[-1] - table[-2])  # patterns 0, 1, 2, ... up to infinity
    size = np.abs(values)
    upper = np.clip(np.searchsorted(table, size), 1, len(table) - 1)
    below, above = size - table[upper - 1], table[upper] - size  # exact: neighbours in f64
    up = (above < below) | ((above == below) & (upper % 2 == 0))
    bits = np.where(size >= table[-1], len(table) - 1, np.where(up, upper, upper - 1))
    bits = bits | (np.signbit(values) << 15)
    return np.where(np.isnan(values), NAN[dtype], bits).astype(np.uint16)


def around_every_result(dtype: DType) -> np.ndarray:
    """f32 patterns at, next to, and half-way between all values of ``dtype``."""
    points = np.abs(values_of(dtype)[: 1 << 15])
    points = points[np.isfinite(points)]
    halves = (points[1:] + points[:-1]) / 2
    top = points[-1] + (points[-1] - points[-2]) / 2
    with np.errstate(over="ignore"):
        size = np.concatenate([points, halves, [top, 2 * top]]).astype(np.float32)
    bits = size.view(np.uint32)
    bits = np.unique(np.concatenate([bits, bits + 1, bits[bits > 0] - 1]))
    return np.concatenate([bits, bits | 0x80000000]).astype(np.uint32)


@pytest.mark.parametrize("dtype", [F16, BF16], ids=str)
def test_narrowing_ties_and_neighbours(dtype: DType, backend: str) -> None:
    bits = around_every_result(dtype)
    with np.errstate(invalid="ignore"):
        expected = nearest(bits.view(np.float32).astype(np.float64), dtype)
    np.testing.assert_array_equal(convert(bits, F32, dtype, backend), expected)


@pytest.mark.parametrize("dtype", [F16, BF16], ids=str)
def test_narrowing_a_dense_sample_agrees_with_torch(dtype: DType, backend: str) -> None:
    step = 509 if backend == "native" else 8191  # primes: all low and high bits take all values
    bits = np.arange(0, 1 << 32, step, dtype=np.uint64).astype(np.uint32)
    values = torch.from_numpy(bits.view(np.float32))
    expected = values.to(TORCH[dtype]).view(torch.int16).numpy().view(np.uint16)
    expected[np.isnan(bits.view(np.float32))] = NAN[dtype]
    got = convert(bits, F32, dtype, backend)
    assert np.array_equal(got, expected)


@pytest.mark.parametrize("out", [F32, F16, BF16], ids=str)
def test_every_nan_becomes_the_one_quiet_nan(out: DType, backend: str) -> None:
    payloads = np.concatenate([[1, 0x7FFFFF, 0x400000, 0x3FFFFF], 1 << np.arange(23)])
    for sign in (0, 0x80000000):
        bits = (0x7F800000 | sign | payloads).astype(np.uint32)
        assert (convert(bits, F32, out, backend) == NAN[out]).all()


def test_overflow_starts_half_an_ulp_above_the_largest(backend: str) -> None:
    for dtype, largest in ((F16, 65504.0), (BF16, (2 - 2**-7) * 2.0**127)):
        infinity = {F16: 0x7C00, BF16: 0x7F80}[dtype]
        half = largest * (1 + 0.5 / ((1 << SIGNIFICAND[dtype]) - 1))
        below = np.nextafter(np.float32(half), np.float32(0))
        bits = np.array([largest, below, half], np.float32).view(np.uint32)
        expected = [infinity - 1, infinity - 1, infinity]
        assert convert(bits, F32, dtype, backend).tolist() == expected
        # With a term, and one at a time: a block without other overflows counts it as well.
        nothing = [Term(Operand(np.zeros(1, np.float32), F32), 1.0, False)]
        for value, result in zip(bits, expected, strict=True):
            out = Guarded(1, dtype)
            base = Operand(np.array([value]).view(np.float32), F32)
            stats = combine(base, nothing, out.operand, backend=backend)
            assert out.bits()[0] == result
            assert (stats.nonfinite, stats.unchanged) == (int(result == infinity), 1)


def test_f32_stays_as_it_is(backend: str) -> None:
    bits = np.arange(0, 1 << 32, 65521, dtype=np.uint64).astype(np.uint32)
    bits = bits[~np.isnan(bits.view(np.float32))]
    np.testing.assert_array_equal(convert(bits, F32, F32, backend), bits)
