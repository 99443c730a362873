"""The thresholds of --trim: of each tensor or of each whole vector, by counting."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from avops.disk.source import Source
from avops.kernels.transforms import Selection, Threshold
from avops.stream.crew import work_off
from avops.stream.factors import FactorCache
from avops.stream.plan import Plan
from avops.stream.transform_read import Reader
from avops.stream.transforms import Transforms

# Elements of a block.
_BLOCK = 1 << 18

Read = Callable[[int], None]
Place = tuple[int, int]


class Thresholds:
    """Finds the thresholds of all vectors of ``plan``, with ``threads`` threads.

    read: is told how many bytes were read, on any thread.
    """

    def __init__(
        self, plan: Plan, sources: Sequence[Source], factors: FactorCache, threads: int, read: Read
    ) -> None:
        self._plan, self._sources, self._factors = plan, sources, factors
        self._threads, self._read = threads, read

    def find(self, transforms: Transforms, vectors: int) -> dict[tuple[int, int], Threshold]:
        """By vector and number of the segment."""
        segments = enumerate(self._plan.segments)
        held = [
            (term.term, number)
            for number, segment in segments
            for term in segment.terms
            if segment.count
        ]
        if transforms.over == "tensor":
            return self._per_tensor(transforms, held)
        found = {}
        for vector in range(vectors):
            numbers = [number for other, number in held if other == vector]
            selection = self._over_all(transforms, vector, numbers)
            found.update({(vector, number): selection.threshold(number) for number in numbers})
        return found

    def _per_tensor(
        self, transforms: Transforms, held: Sequence[tuple[int, int]]
    ) -> dict[tuple[int, int], Threshold]:
        """One thread goes through one tensor: the second pass finds it in the page cache."""
        found: dict[tuple[int, int], Threshold] = {}

        def worker() -> Callable[[tuple[int, int]], int]:
            reader = Reader(self._sources, self._factors)

            def do(item: tuple[int, int]) -> int:
                vector, number = item
                count = self._plan.segments[number].count
                selection = Selection(count, transforms.keep(count))
                while selection.wants():
                    for place in self._places([number]):
                        self._look(reader, selection, vector, place)
                    selection.advance()
                found[item] = selection.threshold(number)
                return 0

            return do

        # The largest first, so that no thread is left alone with one at the end.
        order = sorted(held, key=lambda item: -self._plan.segments[item[1]].count)
        work_off(order, worker, threads=self._threads)
        return found

    def _over_all(self, transforms: Transforms, vector: int, numbers: Sequence[int]) -> Selection:
        total = sum(self._plan.segments[number].count for number in numbers)
        selection = Selection(total, transforms.keep(total))

        def worker() -> Callable[[Place], int]:
            reader = Reader(self._sources, self._factors)

            def do(place: Place) -> int:
                self._look(reader, selection, vector, place)
                return 0

            return do

        while selection.wants():
            work_off(self._places(numbers), worker, threads=self._threads)
            selection.advance()
        return selection

    def _look(self, reader: Reader, selection: Selection, vector: int, place: Place) -> None:
        if not selection.wants(place):
            return
        segment = self._plan.segments[place[0]]
        count = min(_BLOCK, segment.count - place[1])
        block = reader.read(segment, place[1], count, (vector,))
        selection.add(place, block.deltas[0])
        self._read(block.nbytes)

    def _places(self, numbers: Sequence[int]) -> Iterator[Place]:
        for number in numbers:
            for first in range(0, self._plan.segments[number].count, _BLOCK):
                yield number, first
