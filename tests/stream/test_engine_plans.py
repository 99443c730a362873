"""Random plans: the native engine and the general way give the same bytes, counts and sums."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from avops.disk import Staging, source
from avops.disk.source import Identity
from avops.dtypes import BF16, F16, F32, DType
from avops.errors import CheckpointError
from avops.kernels import effective, extension
from avops.stream import engine, pipeline, windows, worker
from avops.stream.counts import Counts
from avops.stream.pipeline import Outcome
from avops.stream.plan import (
    Input,
    LowRankRange,
    Output,
    Plan,
    Range,
    Segment,
    TermRange,
)
from avops.stream.sink import StagingSink
from bits import bf16

pytestmark = pytest.mark.skipif(extension.NATIVE is None, reason=extension.REASON)

DTYPES = (BF16, F16, F32)
LAMS = (0.0, 0.0, 1.0, -0.5, 0.3, 1e30)


class Maker:
    """Draws plans over three files: numbers in bf16, f16 and f32."""

    def __init__(self, seed: int, directory: Path) -> None:
        self.rng = np.random.default_rng(seed)
        values = (self.rng.standard_normal(150_000) * 0.05).astype(np.float32)
        made = {BF16: bf16(values), F16: values.astype(np.float16), F32: values}
        self.inputs, self.sizes = [], []
        for dtype, array in made.items():
            path = directory / f"in-{dtype}"
            path.write_bytes(array.tobytes())
            with path.open("rb") as file:
                self.inputs.append(Input(path, Identity.of(file.fileno())))
            self.sizes.append(array.nbytes)

    def below(self, high: int) -> int:
        return int(self.rng.integers(high))

    def pick(self, values: Sequence[Any]) -> Any:
        return values[self.below(len(values))]

    def range(self, count: int, dtype: DType | None = None) -> Range:
        """``count`` elements somewhere; seldom of another dtype than the file's."""
        dtype = dtype or self.pick(DTYPES)
        file = DTYPES.index(dtype) if self.below(20) else self.below(3)
        room = self.sizes[file] - count * dtype.size
        return Range(file, self.below(room // dtype.size + 1) * dtype.size, dtype)

    def low_rank(self, rows: int, columns: int) -> LowRankRange:
        rank, transposed = self.pick((1, 2, 3, 8, 17, 65, 130)), bool(self.below(2))
        sizes = (rows, columns) if transposed else (columns, rows)
        rank = max(1, min(rank, 60_000 // max(sizes)))
        a, b = self.range(rank * sizes[0]), self.range(rank * sizes[1])
        return LowRankRange(a, b, rank, sizes, self.pick((1.0, 0.25, -3.0)), transposed)

    def term(self, number: int, shape: tuple[int, int], first: int, count: int) -> TermRange:
        lams = tuple(float(np.float32(self.pick(LAMS))) for _ in range(self.candidates))
        if self.below(2):
            rows, columns = shape
            return TermRange(self.low_rank(rows, columns), "x", number, lams, aligned=False)
        return TermRange(self.range(count), "x", number, lams, bool(self.below(2)))

    def segment(self, number: int, offset: int) -> Segment:
        columns = self.pick((1, 3, 15, 64, 100, 513, 700, 1500))
        rows = 1 + self.below(max(1, 12_000 // columns))
        first = self.below(rows * columns) if self.below(2) else 0
        count = rows * columns - first
        count = 1 + self.below(count) if self.below(2) else count
        dtype = self.pick(DTYPES)
        operation = self.pick(self.operations)
        terms: tuple[TermRange, ...] = ()
        if operation == "combine":
            numbers = sorted({self.below(6) for _ in range(self.below(5))})
            terms = tuple(self.term(k, (rows, columns), first, count) for k in numbers)
        elif operation in ("diff", "delta"):
            term = self.term(0, (rows, columns), first, count)
            while operation == "diff" and isinstance(term.values, LowRankRange):
                term = self.term(0, (rows, columns), first, count)
            terms = (dataclasses.replace(term, aligned=operation == "diff"),)
        return Segment(
            operation=operation,
            tensor=f"t{number}",
            count=count,
            base=self.range(count, dtype if self.below(2) else None),
            terms=terms,
            output=0,
            offset=offset,
            dtype=dtype,
            first=first,
            key=self.below(1 << 62) if operation == "combine" and not self.below(3) else None,
        )

    def plan(self) -> Plan:
        extraction = not self.below(4)
        self.operations = ("diff", "delta") if extraction else ("combine",) * 5 + ("copy",)
        self.candidates = 1 if extraction else self.pick((1, 1, 2, 3, 9))
        segments, outputs = [], []
        for output in range(1 + self.below(2)):
            prefix = self.rng.bytes(self.below(40))
            end = len(prefix)
            for _ in range(1 + self.below(6)):
                one = self.segment(len(segments), end)
                segments.append(dataclasses.replace(one, output=output))
                end += segments[-1].nbytes
            outputs.append(Output(f"out{output}", prefix, end))
        order = self.rng.permutation(len(segments))
        return Plan(
            tuple(self.inputs), tuple(outputs), tuple(segments[i] for i in order), self.candidates
        )


def evict(plan: Plan) -> None:
    for item in plan.inputs:
        fd = os.open(item.path, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def seen(counts: Counts) -> tuple[Any, ...]:
    sums = sorted((found.terms, found.gram.tolist()) for found in counts.sums)
    numbers = counts.elements, counts.unchanged, counts.overflowed, counts.flushed
    return *numbers, dict(counts.nonfinite), sums


def carried_out(
    plan: Plan, directory: Path, skipped: int | None = None, threads: int = 3
) -> list[Any]:
    """What each candidate has: hashes of its files, counts and digests; None for ``skipped``."""
    with contextlib.ExitStack() as stack:
        sinks: list[Any] = [
            StagingSink(
                stack.enter_context(Staging(directory / f"to{i}", directory=True)), plan.outputs
            )
            if i != skipped
            else None
            for i in range(plan.candidates)
        ]
        outcomes: list[Outcome] = pipeline.run(plan, sinks, threads=threads)
        return [
            None
            if sink is None
            else (
                [
                    hashlib.sha256(file.read(output.size, 0)).hexdigest()
                    for file, output in zip(sink._files, plan.outputs, strict=True)
                ],
                seen(outcome.counts),
                outcome.digests,
            )
            for sink, outcome in zip(sinks, outcomes, strict=True)
        ]


def compare(
    plan: Plan, directory: Path, patch: pytest.MonkeyPatch, skipped: int | None = None
) -> None:
    """Carry out ``plan`` both ways."""
    assert engine.serves(plan, pipeline.BLOCK)
    left: list[windows.Window] = []
    with patch.context() as inner:
        real = worker.Worker.read

        def read(self: worker.Worker, window: windows.Window) -> Any:
            left.append(window)
            return real(self, window)

        inner.setattr(worker.Worker, "read", read)
        ours = carried_out(plan, directory, skipped)
    # Only ends of files that are too short for the engine's digest.
    assert all(window.nbytes < 241 for window in left), left
    with patch.context() as inner:
        inner.setattr(pipeline, "serves", lambda plan, block: False)
        assert carried_out(plan, directory, skipped) == ours


def use_blocks(patch: pytest.MonkeyPatch, size: int) -> None:
    for module in (windows, worker, pipeline):
        patch.setattr(module, "BLOCK", size)


def both_ways(seed: int, directory: Path, patch: pytest.MonkeyPatch) -> None:
    """Compare them on the plan with that seed."""
    maker = Maker(seed, directory)
    plan = maker.plan()
    use_blocks(patch, maker.pick((241, 1000, 4096, 10_001, 1 << 16)))
    patch.setattr(source, "DIRECT_FROM", maker.pick((512, 1 << 16)))
    patch.setattr(effective, "STRIDE", maker.pick((700, 1 << 21)))
    patch.setattr(effective, "SAMPLE", maker.pick((50, 333)))
    patch.setattr(pipeline, "_COLD_BLOCKS", maker.pick((1, 2, 3)))
    skipped = maker.below(plan.candidates) if plan.candidates > 1 and maker.below(2) else None
    if maker.below(2):
        evict(plan)
    compare(plan, directory, patch, skipped)


@pytest.mark.parametrize("seed", range(40))
def test_both_ways_give_the_same(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both_ways(seed, tmp_path, monkeypatch)


@pytest.mark.parametrize("stored", [45, 130])
@pytest.mark.parametrize("cached", [True, False], ids=["cached", "uncached"])
def test_any_number_of_terms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored: int, cached: bool
) -> None:
    """More than the scratch has room for, were each to have its usual share."""
    maker = Maker(0, tmp_path)
    maker.candidates = 2
    count = 140_000
    terms = [
        TermRange(maker.range(count), "x", number, (0.25, -0.5), aligned=False)
        for number in range(stored)
    ]
    for number in range(stored, stored + 40):
        values = maker.low_rank(100, 1400)
        terms.append(TermRange(values, "x", number, (0.5, 0.0), aligned=False))
    segment = Segment("combine", "t", count, maker.range(count), tuple(terms), 0, 3, BF16)
    output = Output("out", b"abc", 3 + segment.nbytes)
    plan = Plan(tuple(maker.inputs), (output,), (segment,), 2)
    use_blocks(monkeypatch, 1 << 17)
    if not cached:
        evict(plan)
    compare(plan, tmp_path, monkeypatch)


@pytest.mark.parametrize("seed", range(4))
def test_adapters_of_other_lengths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Vocabularies that differ in rows; rows themselves must be of one length."""
    maker = Maker(seed, tmp_path)
    maker.candidates = 2
    count = 9000

    def plan(*shapes: tuple[int, int]) -> Plan:
        terms = tuple(
            TermRange(maker.low_rank(*shape), "x", number, (0.5, -1.0), aligned=False)
            for number, shape in enumerate(shapes)
        )
        segment = Segment("combine", "t", count, maker.range(count), terms, 0, 3, BF16)
        output = Output("out", b"abc", 3 + segment.nbytes)
        return Plan(tuple(maker.inputs), (output,), (segment,), 2)

    use_blocks(monkeypatch, 4096)
    compare(plan((100, 90), (104, 90)), tmp_path, monkeypatch)
    assert not engine.serves(plan((100, 90), (100, 96)), 4096)


def test_an_input_that_ends_too_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Factors beyond the end of a file: the general way is asked, and says what is wrong."""
    maker = Maker(1, tmp_path)
    maker.candidates = 1
    term = TermRange(maker.low_rank(100, 90), "x", 0, (1.0,), aligned=False)
    segment = Segment("combine", "t", 9000, maker.range(9000, F32), (term,), 0, 0, F32)
    plan = Plan(tuple(maker.inputs), (Output("out", b"", segment.nbytes),), (segment,))
    real = pipeline.drive

    def cut(*args: Any, **options: Any) -> Any:
        assert isinstance(term.values, LowRankRange)
        os.truncate(plan.inputs[term.values.b.file].path, 5)
        return real(*args, **options)

    monkeypatch.setattr(pipeline, "drive", cut)
    with pytest.raises(CheckpointError, match=r"ended|short|changed"):
        carried_out(plan, tmp_path)
