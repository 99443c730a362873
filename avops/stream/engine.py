"""The native engine: a whole merge on threads of its own, without the interpreter (csrc/engine.h).

It takes merges, of any number of candidates, and extractions of vectors. It reports the blocks that
it has written; the ones that it leaves, for whatever reason, go the general way, which succeeds or
says what is wrong.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from avops.disk import source
from avops.disk.source import ALIGN, Source
from avops.kernels import effective, extension, registry
from avops.kernels.effective import Sums
from avops.stream.counts import Counts
from avops.stream.plan import (
    LowRankRange,
    Plan,
    Range,
    Segment,
    TermRange,
    bytes_per_count,
)

# In the order of EngineOperation in csrc/engine_plan.h.
_OPERATIONS = ("combine", "copy", "diff", "delta")
# Bytes of a thread for pieces of cached inputs, as in csrc/engine_work.h; for low-rank differences
# of all terms, and of each of many, as in csrc/engine_piece.h.
SCRATCH = 1 << 19
_DELTAS, _DELTAS_OF_ONE = 1 << 17, 1 << 13
# Candidates that have a window in memory at once, as in csrc/engine_plan.h.
GROUP = 8
# The shortest block that it can digest.
_SHORTEST = 241
# How long it is left alone: interrupts and progress are seen between.
_PATIENCE = 0.1

# Of each output file two descriptors, for ordinary writes and for direct ones (-1: none).
Descriptors = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Block:
    """A block that is written: whose, its file and number, its digest, and what was counted."""

    candidate: int
    output: int
    number: int
    digest: bytes
    counts: Counts


def serves(plan: Plan, block: int) -> bool:
    """Whether the engine can carry out ``plan`` in blocks of ``block`` bytes."""
    return (
        block >= _SHORTEST
        and all(
            registry.resolve(operation).backend == "native"
            for operation in ("combine", "diff", "gram", "lowrank")
        )
        and all(map(_serves, plan.segments))
    )


def _serves(segment: Segment) -> bool:
    if segment.operation == "copy":
        return True
    values = [term.values for term in segment.terms]
    low_rank = [value for value in values if isinstance(value, LowRankRange)]
    stored = [value for value in values if isinstance(value, Range)]
    stored += [] if segment.operation == "delta" else [segment.base]
    stored += [factor for value in low_rank for factor in (value.a, value.b)]
    return (
        segment.operation in _OPERATIONS
        and segment.dtype.computable
        and all(value.dtype.computable for value in stored)
        and len({value.sizes[value.transposed] for value in low_rank} | {0}) <= 2
    )


def memory(plan: Plan, together: int, block: int) -> float:
    """Bytes that a thread takes for ``together`` blocks of ``block`` bytes and their inputs.

    Each input begins and ends within pages.
    """
    outputs = min(plan.candidates, GROUP)
    inputs, ranges, deltas = 0.0, 0, 0
    for segment in plan.segments:
        if segment.operation == "copy":
            inputs = max(inputs, 1.0)
            continue
        if segment.nbytes:
            inputs = max(inputs, bytes_per_count(segment) / segment.dtype.size)
        low_rank = sum(isinstance(term.values, LowRankRange) for term in segment.terms)
        if low_rank:
            deltas = max(deltas, _DELTAS, low_rank * _DELTAS_OF_ONE)
        ranges = max(ranges, len(segment.terms) - low_rank + 1)
    return together * block * (outputs + inputs) + deltas + SCRATCH + 3 * ALIGN * (1 + ranges)


def drive(
    plan: Plan,
    sources: Sequence[Source],
    targets: Sequence[tuple[int, Descriptors]],
    *,
    done: Iterable[tuple[int, int, int]],
    block: int,
    together: int,
    threads: int,
    progress: Callable[[int], None],
) -> Generator[Block, None, None]:
    """Carry out ``plan`` as far as possible; yields blocks as they are found written.

    sources: the open inputs. targets: the candidates to write, in order, each with its output
    files. done: (candidate, output, block) of what is there already. block: bytes.
    together: blocks that are read and written at once.
    ``progress`` gets the bytes read so far. Closing the iterator ends the threads.
    """
    native = extension.NATIVE
    assert native is not None
    candidates = [candidate for candidate, _ in targets]
    place = {candidate: slot for slot, candidate in enumerate(candidates)}
    factors: dict[LowRankRange, int] = {}
    segments = _segments(plan, candidates, factors)
    engine = native.engine_start(
        tuple((file.fd, file.direct_fd(), file.size) for file in sources),
        tuple((output.size, output.prefix) for output in plan.outputs),
        tuple(tuple(descriptors) for _, descriptors in targets),
        tuple(map(_factors, factors)),
        segments,
        tuple(sorted((output, number, place[candidate]) for candidate, output, number in done)),
        block,
        together,
        effective.STRIDE,
        effective.SAMPLE,
        source.DIRECT_FROM,
        threads,
    )
    try:
        ended = False
        while not ended:
            blocks, ended, nbytes = native.engine_poll(engine, _PATIENCE)
            progress(nbytes)
            for slot, output, number, digest, *counted in blocks:
                candidate = candidates[slot]
                yield Block(candidate, output, number, digest, _counts(counted, plan, candidate))
    finally:
        native.engine_stop(engine)


def _segments(
    plan: Plan, candidates: Sequence[int], factors: dict[LowRankRange, int]
) -> tuple[Any, ...]:
    """The segments for the engine; numbers those of ``factors`` that they have."""
    numbered = [(number, one) for number, one in enumerate(plan.segments) if one.nbytes]
    numbered.sort(key=lambda pair: (pair[1].output, pair[1].offset))
    return tuple((number, _segment(one, candidates, factors)) for number, one in numbered)


def _segment(
    segment: Segment, candidates: Sequence[int], factors: dict[LowRankRange, int]
) -> tuple[Any, ...]:
    return (
        segment.output,
        segment.offset,
        segment.count,
        _OPERATIONS.index(segment.operation),
        segment.dtype.code,
        segment.first,
        segment.key,
        _range(segment.base),
        tuple(_term(term, candidates, factors) for term in segment.terms),
    )


def _term(
    term: TermRange, candidates: Sequence[int], factors: dict[LowRankRange, int]
) -> tuple[Any, ...]:
    where = term.values
    values = _range(where) if isinstance(where, Range) else factors.setdefault(where, len(factors))
    return values, tuple(term.lams[candidate] for candidate in candidates), term.aligned


def _factors(where: LowRankRange) -> tuple[Any, ...]:
    a, b = _range(where.a), _range(where.b)
    return a, b, where.rank, *where.sizes, where.scale, where.transposed


def _range(where: Range) -> tuple[int, int, int]:
    return where.file, where.offset, where.dtype.code


def _counts(counted: Sequence[Any], plan: Plan, candidate: int) -> Counts:
    elements, unchanged, overflowed, flushed, nonfinite, sums = counted
    found = [
        Sums(
            tuple(term.term for term in plan.segments[segment].terms if term.lams[candidate] != 0),
            array("d", gram),
        )
        for segment, gram in sums
    ]
    # A segment comes twice where its last element straddles two blocks.
    bad: Counter[int] = Counter()
    for segment, count in nonfinite:
        bad[segment] += count
    return Counts(elements, unchanged, overflowed, flushed, bad, found)
