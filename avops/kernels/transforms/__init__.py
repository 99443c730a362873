"""Transforms of alignment vectors: trim, elect signs, drop and rescale, truncate to a rank.

Shapes and dtypes
    Differences are flat float32 arrays; any block of a tensor, whose first element has the flat
    index ``start`` in it. ``truncate`` takes a whole matrix.
Numerics
    trim     keeps the entries of largest magnitude, a given number of them; of equal ones those
             that come first. Magnitudes are compared as bits, so a NaN is larger than infinity.
    elect    per element, s = Σ_k Δ_k in float64 in the order of the vectors; entries whose sign
             is not that of s become +0, all of them where s is 0.
    dare     an entry becomes +0 where r < limit, r being the 32 bits of ``rounding.uniform``;
             others are multiplied by factor, rounded once. So P(drop) = limit / 2^32.
    truncate the nearest matrix of a rank: no other is nearer by more than 2^-24 of the norm, the
             rounding of a factor.
    The first three have the same bits whatever the blocks, threads and shards; the last bits of
    ``truncate`` are those of numpy's BLAS.
Aliasing
    trim, elect and dare work in place, on arrays apart from each other.
Backends
    numpy alone: what is read and written takes the longer time. ``reference`` has whole tensors,
    spelled out; ``blocks`` and ``Selection`` give the same bits block by block.
Source
    TIES (arXiv 2306.01708): trim, elect. DARE (arXiv 2311.03099). Eckart and Young, 1936.
"""

from __future__ import annotations

from avops.kernels.transforms.blocks import Drop, Threshold, dare, drop_key, elect, trim
from avops.kernels.transforms.select import Selection
from avops.kernels.transforms.truncate import Truncated, memory, truncate

__all__ = [
    "Drop",
    "Selection",
    "Threshold",
    "Truncated",
    "dare",
    "drop_key",
    "elect",
    "memory",
    "trim",
    "truncate",
]
