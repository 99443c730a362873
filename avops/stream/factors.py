"""The factors of low-rank terms, read whole once per tensor and kept while it is at work."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from avops.disk.source import Source
from avops.kernels import Factors, Operand, factors
from avops.stream.plan import LowRankRange, Range

# Bytes kept beyond what is at work. Windows go through tensors in order, so few are needed.
_KEPT = 32 << 20


class FactorCache:
    """Factors by their place; the least recently used go first."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = sources
        self._lock = threading.Lock()
        self._found: OrderedDict[LowRankRange, Factors] = OrderedDict()

    def get(self, where: LowRankRange) -> Factors:
        """The factors at ``where``; read by the first who asks, while the others wait."""
        with self._lock:
            if where not in self._found:
                self._found[where] = self._load(where)
                while len(self._found) > 1 and self._nbytes() > _KEPT:
                    self._found.popitem(last=False)
            self._found.move_to_end(where)
            return self._found[where]

    def _nbytes(self) -> int:
        return sum(item.left.nbytes + item.right.nbytes for item in self._found.values())

    def _load(self, where: LowRankRange) -> Factors:
        inner, outer = where.sizes
        a = self._read(where.a, where.rank * inner)
        b = self._read(where.b, outer * where.rank)
        return factors(a, b, rank=where.rank, scale=where.scale, transposed=where.transposed)

    def _read(self, where: Range, count: int) -> Operand:
        raw = np.empty(count * where.dtype.size, np.uint8)
        self._sources[where.file].read_all(raw.data, where.offset)
        return Operand(raw.view(where.dtype.storage), where.dtype)
