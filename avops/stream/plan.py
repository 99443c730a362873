"""Plans: every byte to read and write, decided before the first one moves. Pure data."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from avops.disk.source import Identity
from avops.dtypes import DType


@dataclass(frozen=True)
class Input:
    """A file to read, and which version of it was planned with."""

    path: Path
    identity: Identity


@dataclass(frozen=True, slots=True)
class Range:
    """Flat elements in an input file: file number, absolute byte offset, element type."""

    file: int
    offset: int
    dtype: DType


@dataclass(frozen=True, slots=True)
class LowRankRange:
    """The factors of Δ = scale · B@A, or its transpose. sizes: A is [rank, n], B is [m, rank]."""

    a: Range
    b: Range
    rank: int
    sizes: tuple[int, int]
    scale: float
    transposed: bool


@dataclass(frozen=True, slots=True)
class TermRange:
    """A term's elements: those of the segment, one for one.

    term: number of the alignment vector in the recipe. lams: its float32 coefficient here, per
    candidate. aligned: weights rather than differences.
    """

    values: Range | LowRankRange
    name: str
    term: int
    lams: tuple[float, ...]
    aligned: bool


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive elements of one tensor on their way from inputs to an output file.

    operation: ``combine`` (out = base + Σ λ·Δ), ``diff`` (out = terms[0] − base), ``delta``
    (out = terms[0]), or ``copy`` (bytes of base). first: the flat index of the first element in
    its tensor. count: elements (bytes for a copy). output: number of the output file. offset:
    absolute, in that file. key: seeds this tensor's dither, None for nearest rounding.
    """

    operation: str
    tensor: str
    count: int
    base: Range
    terms: tuple[TermRange, ...]
    output: int
    offset: int
    dtype: DType
    first: int = 0
    key: int | None = None

    @property
    def nbytes(self) -> int:
        """Bytes in the output."""
        return self.count if self.operation == "copy" else self.count * self.dtype.size


@dataclass(frozen=True)
class Output:
    """An output file: its name, header bytes and size in bytes."""

    name: str
    prefix: bytes
    size: int


@dataclass(frozen=True)
class Plan:
    """Inputs, output files and segments, these in the order of their place in the outputs.

    candidates: how many λ points are written, each to files of its own with these names.
    """

    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]
    segments: tuple[Segment, ...]
    candidates: int = 1

    @property
    def bytes_written(self) -> int:
        """Bytes of the output files of all candidates."""
        return self.candidates * sum(out.size for out in self.outputs)

    @cached_property
    def bytes_read(self) -> int:
        """Bytes of tensor data read from the inputs."""
        return sum(segment.count * bytes_per_count(segment) for segment in self.segments)

    @cached_property
    def max_terms(self) -> int:
        """The largest number of terms in a segment."""
        return max((len(segment.terms) for segment in self.segments), default=0)


def bytes_per_count(segment: Segment) -> int:
    """Bytes read for one of the segment's elements; low-rank factors, read once, not counted."""
    if segment.operation == "copy":
        return 1
    size = 0 if segment.operation == "delta" else segment.base.dtype.size
    return size + sum(
        term.values.dtype.size for term in segment.terms if isinstance(term.values, Range)
    )
