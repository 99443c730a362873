"""Reading differences, any part of a tensor, and applying the transforms to them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from avops.disk.source import ALIGN, Source, aligned_memory
from avops.dtypes import F32
from avops.kernels import Operand, combine, diff, lowrank
from avops.kernels.transforms import Threshold, dare, elect, trim
from avops.stream.factors import FactorCache
from avops.stream.pipeline import allow_open_files
from avops.stream.plan import LowRankRange, Plan, Range, Segment, TermRange
from avops.stream.transforms import Transforms


@contextlib.contextmanager
def opened_sources(plan: Plan, outputs: int) -> Iterator[list[Source]]:
    """The inputs of ``plan``; at the end they must be what they were.

    outputs: how many more files will be open.

    Raises CheckpointError when one is not.
    """
    allow_open_files(2 * (len(plan.inputs) + outputs))
    with contextlib.ExitStack() as stack:
        sources = []
        for item in plan.inputs:
            source = Source(item.path, item.identity)
            stack.callback(source.close)
            sources.append(source)
        yield sources
        for source in sources:
            source.check()


@dataclass(frozen=True)
class Block:
    """Differences in float32, one array for each vector wanted.

    nonfinite: how many of them are NaN or infinite. nbytes: how many bytes were read.
    """

    deltas: list[np.ndarray]
    nonfinite: int
    nbytes: int


class Reader:
    """One thread's memory, and its way to differences. A block is good until the next one."""

    def __init__(self, sources: Sequence[Source], factors: FactorCache) -> None:
        self._sources, self._factors = sources, factors
        self._memory = [memoryview(aligned_memory(1)) for _ in range(2)]
        self._deltas: dict[int, np.ndarray] = {}

    def read(self, segment: Segment, first: int, count: int, wanted: Sequence[int]) -> Block:
        """Elements ``first`` … of the vectors ``wanted``; of one without the tensor, zeros."""
        terms = {term.term: term for term in segment.terms}
        base, nbytes, nonfinite = None, 0, 0
        if any(number in terms and terms[number].aligned for number in wanted):
            base = self._stored(0, segment.base, first, count)
            nbytes += base.array.nbytes
        found = []
        for number in wanted:
            delta = self._delta(number, count)
            if number in terms:
                read, bad = self._difference(terms[number], base, first, delta)
                nbytes, nonfinite = nbytes + read, nonfinite + bad
            else:
                delta[:] = 0
            found.append(delta)
        return Block(found, nonfinite, nbytes)

    def _difference(
        self, term: TermRange, base: Operand | None, first: int, delta: np.ndarray
    ) -> tuple[int, int]:
        """Put Δ into ``delta``. Returns bytes read, and how many values are not finite."""
        out = Operand(delta, F32)
        if isinstance(term.values, LowRankRange):
            lowrank(self._factors.get(term.values), first, out)
            return 0, delta.size - int(np.count_nonzero(np.isfinite(delta)))
        values = self._stored(1, term.values, first, delta.size)
        if not term.aligned:
            return values.array.nbytes, combine(values, (), out).nonfinite
        assert base is not None
        return values.array.nbytes, diff(base, values, out).nonfinite

    def _delta(self, number: int, count: int) -> np.ndarray:
        if number not in self._deltas or self._deltas[number].size < count:
            self._deltas[number] = np.empty(count, np.float32)
        return self._deltas[number][:count]

    def _stored(self, which: int, where: Range, first: int, count: int) -> Operand:
        size = where.dtype.size
        offset, nbytes = where.offset + first * size, count * size
        at = offset % ALIGN
        if len(self._memory[which]) < nbytes + 2 * ALIGN:
            self._memory[which] = memoryview(aligned_memory(nbytes + 2 * ALIGN))
        memory = self._memory[which]
        self._sources[where.file].read(memory, at, offset, nbytes)
        raw = np.frombuffer(memory, np.uint8, nbytes, at)
        return Operand(raw.view(where.dtype.storage), where.dtype)


@dataclass(frozen=True)
class Applied:
    """Transforms with what they need to know. thresholds: by vector and number of the segment."""

    transforms: Transforms
    thresholds: Mapping[tuple[int, int], Threshold] = field(default_factory=dict)

    def __call__(
        self, segment: Segment, number: int, first: int, deltas: Sequence[np.ndarray]
    ) -> None:
        """Transform elements ``first`` … of segment ``number``, of all vectors, in place."""
        for vector, delta in enumerate(deltas):
            if (vector, number) in self.thresholds:
                trim(delta, first, self.thresholds[vector, number])
        if self.transforms.sign_elect:
            elect(deltas)
        if self.transforms.dare is not None:
            for vector, delta in enumerate(deltas):
                dare(delta, first, self.transforms.drop(vector, segment.tensor))
