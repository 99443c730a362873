"""The threshold that keeps a given number of the largest magnitudes, found by counting.

The bits of a magnitude order as the magnitude does. So a histogram of their upper half tells in
which of 2^15 bins the threshold lies, one of the lower half which value it is, and counts of that
value, block by block, where the last entry lies that is kept: passes over the data, each in any
order of the blocks, with memory for one histogram.
"""

from __future__ import annotations

import threading

import numpy as np

from avops.kernels.transforms.blocks import ALL, Threshold

_HIGH, _LOW = 1 << 15, 1 << 16
_BITS = np.uint32(0x7FFFFFFF)

Place = tuple[int, int]


class Selection:
    """The search among ``total`` entries for the threshold that keeps ``keep`` of them.

    While ``wants()``: ``add`` every block for which ``wants`` holds, once and in any order, on any
    thread; then ``advance()``. A block's place is its tensor's number and its first flat index;
    entries come in the order of places.
    """

    def __init__(self, total: int, keep: int) -> None:
        if not 0 <= keep <= total:
            raise ValueError(f"keep is {keep}, expected 0 to {total}")
        self._need = keep
        self._pass = "high" if 0 < keep < total else "done"
        self._bits = 0 if keep else int(_BITS) + 1
        self._end: Place | None = None
        self._found = np.zeros(_HIGH, np.int64)
        self._ties: dict[Place, int] = {}
        self._block: Place | None = None
        self._lock = threading.Lock()

    def wants(self, place: Place | None = None) -> bool:
        """Whether another pass is needed; with ``place``, whether that block is needed in it."""
        if self._pass == "last":
            return place is None or place == self._block
        return self._pass != "done"

    def add(self, place: Place, delta: np.ndarray) -> None:
        """Look at the block ``delta`` (f32, flat)."""
        if self._pass == "high":
            # The upper half of each little-endian number.
            upper = delta.astype("<f4", copy=False).view("<u2")[1::2]
            self._count(np.bincount(upper & np.uint16(0x7FFF), minlength=_HIGH))
            return
        bits = delta.view(np.uint32) & _BITS
        if self._pass == "low":
            inside = bits[(bits >> 16) == self._bits >> 16]
            if inside.size:
                self._count(np.bincount(inside & np.uint32(0xFFFF), minlength=_LOW))
        elif self._pass == "ties":
            count = int(np.count_nonzero(bits == self._bits))
            with self._lock:
                self._ties[place] = count
        else:
            ties = np.flatnonzero(bits == self._bits)
            self._end = place[0], place[1] + int(ties[self._need - 1]) + 1

    def advance(self) -> None:
        """End a pass."""
        if self._pass == "high":
            self._bits = self._bin() << 16
            self._found = np.zeros(_LOW, np.int64)
            self._pass = "low"
        elif self._pass == "low":
            low = self._bin()
            self._bits |= low
            # Where all ties stay, or are 0 anyway, nothing is left to find.
            settled = self._need == self._found[low] or not self._bits
            self._pass = "done" if settled else "ties"
        elif self._pass == "ties":
            self._block = self._tied_block()
            self._pass = "last"
        else:
            self._pass = "done"

    def threshold(self, number: int) -> Threshold:
        """What stays of the tensor ``number``, when no pass is left."""
        if not self._bits:
            return Threshold(0, 0)  # All that is not 0.
        if self._end is None or number < self._end[0]:
            return Threshold(self._bits, ALL)
        return Threshold(self._bits, self._end[1] if number == self._end[0] else 0)

    def _count(self, found: np.ndarray) -> None:
        with self._lock:
            self._found += found

    def _bin(self) -> int:
        """The bin of the threshold. What is above it is kept, and no longer needed."""
        above = np.cumsum(self._found[::-1])
        place = int(np.searchsorted(above, self._need))
        found = len(above) - 1 - place
        self._need -= int(above[place] - self._found[found])
        return found

    def _tied_block(self) -> Place:
        """The block with the last tie that stays, which becomes the tie number ``_need`` in it."""
        for place in sorted(self._ties):
            if self._need <= self._ties[place]:
                self._ties.clear()
                return place
            self._need -= self._ties[place]
        raise ValueError("fewer ties than counted before: the blocks have changed")
