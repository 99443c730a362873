"""What a run sees of the elements it combines."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from avops.kernels import CombineStats
from avops.kernels.effective import Sums
from avops.stream.windows import Piece


@dataclass
class Counts:
    """What was seen in a window: elements of combined tensors, and events among the outputs.

    nonfinite: by number of the segment.
    """

    elements: int = 0
    unchanged: int = 0
    overflowed: int = 0
    flushed: int = 0
    nonfinite: Counter[int] = field(default_factory=Counter)
    sums: list[Sums] = field(default_factory=list)

    def add(self, piece: Piece, stats: CombineStats) -> None:
        """Count one piece."""
        self.elements += piece.count
        self.unchanged += stats.unchanged
        self.overflowed += stats.overflowed
        self.flushed += stats.flushed
        if stats.nonfinite:
            self.nonfinite[piece.number] += stats.nonfinite

    def update(self, other: Counts) -> None:
        """Add another window's counts."""
        self.elements += other.elements
        self.unchanged += other.unchanged
        self.overflowed += other.overflowed
        self.flushed += other.flushed
        self.nonfinite.update(other.nonfinite)
        self.sums += other.sums

    def to_json(self) -> list[Any]:
        """For the journal."""
        sums = [[found.terms, found.gram.tolist()] for found in self.sums]
        numbers = [self.elements, self.unchanged, self.overflowed, self.flushed]
        return [*numbers, list(self.nonfinite.items()), sums]

    @classmethod
    def from_json(cls, data: Sequence[Any]) -> Counts:
        """The counts that ``to_json`` made."""
        elements, unchanged, overflowed, flushed, nonfinite, sums = data
        found = [Sums(tuple(terms), array("d", gram)) for terms, gram in sums]
        return cls(elements, unchanged, overflowed, flushed, Counter(dict(nonfinite)), found)
