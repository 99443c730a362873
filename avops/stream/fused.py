"""Windows whose inputs are in the page cache: read and combined piece by piece in native code.

An input's piece is combined while it is in the core's own cache, which saves a third of the time.
Only for one candidate with stored terms; everything else goes the general way, through memory.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np

from avops.disk.source import Source
from avops.kernels import CombineStats, extension, registry
from avops.kernels.operands import address
from avops.stream.plan import Range, Segment
from avops.stream.windows import Piece, Window

# Bytes for the pieces of all inputs together: half of a usual core's own cache.
SCRATCH = 1 << 19


class Fused:
    """The native operation, and what it needs to know of a window."""

    def __init__(self, sources: Sequence[Source]) -> None:
        native = registry.resolve("combine").backend == "native"
        self._native = extension.NATIVE if native else None
        self._sources = sources
        self._ready: deque[tuple[tuple[int, int, int, float, bool], ...]] = deque()

    def takes(self, window: Window) -> bool:
        """Whether all of ``window`` can be done here. The pieces are then to be done in order."""
        self._ready.clear()
        return self._native is not None and all(map(self._takes, window.pieces))

    def _takes(self, piece: Piece) -> bool:
        segment = piece.segment
        if segment.operation == "copy":
            return True
        if segment.operation != "combine" or not all(
            isinstance(term.values, Range) for term in segment.terms
        ):
            return False
        inputs = self._inputs(piece)
        self._ready.append(inputs)
        return bool(inputs)

    def _inputs(self, piece: Piece) -> tuple[tuple[int, int, int, float, bool], ...]:
        """The native operation's inputs, base first; none when one is not in the page cache."""
        found = []
        for where, lam, aligned in _parts(piece.segment):
            offset = where.offset + piece.first * where.dtype.size
            fd = self._sources[where.file].cached_fd(offset, piece.count * where.dtype.size)
            if fd is None:
                return ()
            found.append((fd, offset, where.dtype.code, lam, aligned))
        return tuple(found)

    def combine(
        self,
        piece: Piece,
        out: np.ndarray,
        scratch: np.ndarray,
        rounding: tuple[int, int] | None,
    ) -> CombineStats | None:
        """Fill ``out``, bytes, with a combined piece; None when a read failed.

        scratch: SCRATCH bytes that begin at a page.
        """
        assert self._native is not None
        counts = self._native.combine_files(
            self._ready.popleft(),
            address(out),
            piece.segment.dtype.code,
            piece.count,
            rounding,
            address(scratch),
            scratch.size,
        )
        return None if counts is None else CombineStats(*counts)

    def copy(self, piece: Piece, out: np.ndarray) -> None:
        """Fill ``out`` with the bytes of a copied piece."""
        where = piece.segment.base
        self._sources[where.file].read_all(out.data, where.offset + piece.first)


def _parts(segment: Segment) -> list[tuple[Range, float, bool]]:
    """Where the base and the terms are, with λ and kind; the base's mean nothing."""
    return [
        (segment.base, 0.0, False),
        *(
            (term.values, term.lams[0], term.aligned)
            for term in segment.terms
            if isinstance(term.values, Range)
        ),
    ]
