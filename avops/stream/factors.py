"""The factors of low-rank terms, read whole once per tensor and kept while it is at work."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from avops.disk.source import Source
from avops.kernels import Factors, Operand, factors
from avops.stream.plan import LowRankRange, Plan, Range

# Bytes kept at least.
_KEPT = 32 << 20


class FactorCache:
    """Factors by their place; the least recently used go first.

    Windows go through tensors in order, so those of the two largest tensors are enough for all
    threads: the one that ends and the one that begins.
    """

    def __init__(self, sources: Sequence[Source], plan: Plan) -> None:
        self._sources = sources
        self._limit = max(_KEPT, 2 * largest_factors(plan))
        self._lock = threading.Lock()
        self._found: OrderedDict[LowRankRange, Factors] = OrderedDict()
        self._held = 0

    def get(self, where: LowRankRange) -> Factors:
        """The factors at ``where``; read by the first who asks, while the others wait."""
        with self._lock:
            if where not in self._found:
                self._found[where] = made = self._load(where)
                self._held += _nbytes(made)
                while len(self._found) > 1 and self._held > self._limit:
                    _, oldest = self._found.popitem(last=False)
                    self._held -= _nbytes(oldest)
            self._found.move_to_end(where)
            return self._found[where]

    def _load(self, where: LowRankRange) -> Factors:
        inner, outer = where.sizes
        a = self._read(where.a, where.rank * inner)
        b = self._read(where.b, outer * where.rank)
        return factors(a, b, rank=where.rank, scale=where.scale, transposed=where.transposed)

    def _read(self, where: Range, count: int) -> Operand:
        raw = np.empty(count * where.dtype.size, np.uint8)
        self._sources[where.file].read_all(raw.data, where.offset)
        return Operand(raw.view(where.dtype.storage), where.dtype)


def _nbytes(made: Factors) -> int:
    return made.left.nbytes + made.right.nbytes


def largest_factors(plan: Plan) -> int:
    """Bytes in float32 of the factors of the tensor of ``plan`` that has most of them."""
    return max(
        (
            sum(
                4 * term.values.rank * sum(term.values.sizes)
                for term in segment.terms
                if isinstance(term.values, LowRankRange)
            )
            for segment in plan.segments
        ),
        default=0,
    )
