"""Windows: an output file cut into blocks, and which elements of which tensors fill each.

A window is a block of an output file, so it is written in one aligned call and has one digest.
Tensors begin and end anywhere in windows. An element that straddles two windows is computed for
both and counted in the one where it begins.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from avops.disk.digest import BLOCK
from avops.stream.plan import Plan, Segment


@dataclass(frozen=True)
class Piece:
    """``count`` elements of ``segment`` from its element ``first`` on (bytes for a copy).

    at: their place in the window, in bytes. skip, nbytes: which of the elements' bytes belong to
    it; all of them, except for one that straddles. counted: whether statistics count them here.
    """

    segment: Segment
    number: int
    first: int
    count: int
    at: int
    skip: int
    nbytes: int
    counted: bool = True


@dataclass(frozen=True)
class Window:
    """Block ``block`` of output file ``output``: ``nbytes`` bytes from byte ``start``."""

    output: int
    block: int
    start: int
    nbytes: int
    pieces: tuple[Piece, ...]


def windows(plan: Plan) -> Iterator[Window]:
    """All windows of ``plan``, in the order of the outputs."""
    queues: list[list[tuple[int, Segment]]] = [[] for _ in plan.outputs]
    for number, segment in enumerate(plan.segments):
        if segment.nbytes:
            queues[segment.output].append((number, segment))
    for output, queue in enumerate(queues):
        queue.sort(key=lambda item: item[1].offset)
        size, place = plan.outputs[output].size, 0
        for block in range(-(-size // BLOCK)):
            start, end = block * BLOCK, min((block + 1) * BLOCK, size)
            while place < len(queue) and _end(queue[place][1]) <= start:
                place += 1
            pieces: list[Piece] = []
            reached = place
            while reached < len(queue) and queue[reached][1].offset < end:
                pieces += _pieces(*queue[reached], start, end)
                reached += 1
            yield Window(output, block, start, end - start, tuple(pieces))


def _end(segment: Segment) -> int:
    return segment.offset + segment.nbytes


def _pieces(number: int, segment: Segment, start: int, end: int) -> Iterator[Piece]:
    """The part of ``segment`` in bytes start … end of its output, in one to three pieces."""
    size = 1 if segment.operation == "copy" else segment.dtype.size
    begin = max(start - segment.offset, 0)
    stop = min(end - segment.offset, segment.nbytes)
    at = segment.offset + begin - start
    head = -begin % size
    if head:
        nbytes = min(head, stop - begin)
        yield Piece(segment, number, begin // size, 1, at, size - head, nbytes, counted=False)
        begin, at = begin + nbytes, at + nbytes
    count = (stop - begin) // size
    if count:
        yield Piece(segment, number, begin // size, count, at, 0, count * size)
        begin, at = begin + count * size, at + count * size
    if begin < stop:
        yield Piece(segment, number, begin // size, 1, at, 0, stop - begin)
