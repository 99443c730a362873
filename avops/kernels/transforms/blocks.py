"""trim, elect and dare in place, on a block of a tensor."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

# Elements at a time: temporaries of that many stay in a core's cache.
_SLICE = 1 << 15
_COUNTING = np.arange(_SLICE, dtype=np.uint32)
_STRETCH = 1 << 32
_SIZE = np.uint32(0x7FFFFFFF)
# Keeps all entries that are equal to the threshold.
ALL = sys.maxsize


@dataclass(frozen=True)
class Threshold:
    """Which entries of a tensor stay: magnitudes with more than ``bits`` (of f32, without sign).

    Of those with exactly these bits the ones with a flat index below ``end``.
    """

    bits: int
    end: int = ALL


@dataclass(frozen=True)
class Drop:
    """Which entries are dropped: hash < limit (of 2^32). factor: of the others, a number of f32."""

    key: int
    limit: int
    factor: float


def drop_key(seed: int, name: str) -> int:
    """The key of the tensor ``name`` under ``seed``: 64 bits of BLAKE2b."""
    text = f"avops-dare-1\n{seed}\n{name}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def trim(delta: np.ndarray, start: int, threshold: Threshold) -> None:
    """Set the entries of ``delta`` to 0 that ``threshold`` does not keep."""
    bits = np.uint32(threshold.bits)
    for part in _slices(delta.size):
        values = delta[part]
        size = values.view(np.uint32) & _SIZE
        lost = size < bits
        first = start + part.start
        if first + values.size > threshold.end:
            late = max(threshold.end - first, 0)
            lost[late:] |= size[late:] == bits
        np.copyto(values, np.float32(0), where=lost)


def elect(deltas: Sequence[np.ndarray]) -> None:
    """Set the entries to 0 whose sign is not that of the sum over ``deltas``."""
    for part in _slices(deltas[0].size):
        with np.errstate(invalid="ignore"):  # infinity − infinity elects no sign
            total = np.zeros(part.stop - part.start, np.float64)
            for delta in deltas:
                total += delta[part]
            sign = np.sign(total).astype(np.float32)
            for delta in deltas:
                values = delta[part]
                np.copyto(values, np.float32(0), where=~(values * sign > 0))


def dare(delta: np.ndarray, start: int, rule: Drop) -> None:
    """Drop entries of ``delta`` by the hash, and rescale the others."""
    limit, factor = np.uint32(rule.limit), np.float32(rule.factor)
    for part in _slices(delta.size, start):
        values = delta[part]
        with np.errstate(over="ignore"):
            np.multiply(values, factor, out=values)
        lost = _uniform(rule.key, start + part.start, values.size) < limit
        np.copyto(values, np.float32(0), where=lost)


def _slices(count: int, start: int | None = None) -> Iterator[slice]:
    """Slices of ``count`` elements; with ``start`` none of them crosses a stretch of 2^32."""
    at = 0
    while at < count:
        room = _SLICE if start is None else min(_SLICE, _STRETCH - (start + at) % _STRETCH)
        yield slice(at, min(at + room, count))
        at += room


def _uniform(key: int, start: int, count: int) -> np.ndarray:
    """What ``rounding.uniform`` gives, of at most _SLICE elements within one stretch."""
    x = (key + (start // _STRETCH + 1) * 0x9E3779B97F4A7C15) % 2**64
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
    x ^= x >> 31
    y = _COUNTING[:count] + np.uint32(start % _STRETCH)
    y ^= np.uint32(x % 2**32)
    y ^= y >> 16
    y *= np.uint32(0x7FEB352D)
    y += np.uint32(x >> 32)
    y ^= y >> 15
    y *= np.uint32(0x846CA68B)
    y ^= y >> 16
    return y
