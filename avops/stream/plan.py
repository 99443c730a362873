"""Plans: every byte to read and write, decided before the first one moves. Pure data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from avops.dtypes import DType


@dataclass(frozen=True)
class Range:
    """Flat elements in an input file: file number, absolute byte offset, element type."""

    file: int
    offset: int
    dtype: DType


@dataclass(frozen=True)
class TermRange:
    """A term's elements. lam is float32; aligned: weights rather than differences."""

    values: Range
    name: str
    lam: float
    aligned: bool


@dataclass(frozen=True)
class Segment:
    """One tensor's way from inputs to an output file.

    operation: ``combine`` (out = base + Σ λ·Δ), ``diff`` (out = terms[0] − base), or ``copy``
    (bytes of base). count: elements (bytes for a copy). output: number of the output file.
    """

    operation: str
    tensor: str
    count: int
    base: Range
    terms: tuple[TermRange, ...]
    output: int
    offset: int
    dtype: DType


@dataclass(frozen=True)
class Output:
    """An output file: its name, header bytes and size in bytes."""

    name: str
    prefix: bytes
    size: int


@dataclass(frozen=True)
class Plan:
    """Inputs, outputs and segments in the order of the base's files.

    small: files written beside the outputs (sidecars, index, recipe), by name.
    """

    inputs: tuple[Path, ...]
    outputs: tuple[Output, ...]
    segments: tuple[Segment, ...]
    small: tuple[tuple[str, bytes], ...] = ()

    @property
    def bytes_written(self) -> int:
        """Bytes of all output files."""
        return sum(out.size for out in self.outputs) + sum(len(data) for _, data in self.small)

    @property
    def bytes_read(self) -> int:
        """Bytes of tensor data read from the inputs."""
        return sum(segment_bytes(segment) for segment in self.segments)

    @property
    def max_terms(self) -> int:
        """The largest number of terms in a segment."""
        return max((len(segment.terms) for segment in self.segments), default=0)


@dataclass(frozen=True)
class Chunk:
    """A part of a segment: ``count`` elements from element ``start``."""

    segment: Segment
    start: int
    count: int


def chunks(plan: Plan, elements: int) -> Iterator[Chunk]:
    """The plan's work in pieces of at most ``elements`` elements, in order."""
    for segment in plan.segments:
        for start in range(0, segment.count, elements):
            yield Chunk(segment, start, min(elements, segment.count - start))


def segment_bytes(segment: Segment) -> int:
    """Bytes that ``segment`` reads."""
    if segment.operation == "copy":
        return segment.count
    sizes = (segment.base.dtype.size, *(term.values.dtype.size for term in segment.terms))
    return segment.count * sum(sizes)
