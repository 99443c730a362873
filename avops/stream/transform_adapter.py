"""extract --rank: the nearest matrices of a low rank, as a LoRA adapter of PEFT.

A tensor is held whole, one for each thread; factors go to their place in the file when they are
there. The product of the factors is Δ itself: the adapter's scale is 1.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from avops import env
from avops.disk import RECIPE_NAME, Staging
from avops.disk.adapter_write import factor_names
from avops.disk.digest import BLOCK, block_digest, root_digest
from avops.disk.staged import StagedFile
from avops.dtypes import F32
from avops.kernels import Operand, combine
from avops.kernels.transforms import memory, truncate
from avops.stream.crew import Progress, work_off
from avops.stream.factors import FactorCache
from avops.stream.nonfinite import refuse_nonfinite
from avops.stream.plan import Segment
from avops.stream.publishing import publish
from avops.stream.record import dump, with_files
from avops.stream.transform_adapter_plan import AdapterPlan
from avops.stream.transform_read import Applied, Reader, opened_sources
from avops.stream.transform_report import ExtractionReport, ReadGauge
from avops.stream.transform_run import applied, passes

# What all threads together may take; one of them may take more.
_MEMORY = 1 << 30
_BLOCK = 1 << 18


@dataclass(frozen=True)
class Factored:
    """What became of one vector. kept: by tensor, the share of its norm that its product has.

    kept_matrices: of all these tensors together. kept_all: with the tensors that were left out.
    """

    target: Path
    transforms: str
    kept: Mapping[str, float]
    kept_matrices: float
    kept_all: float
    nbytes: int

    @property
    def measure(self) -> str:
        """What was measured, for people."""
        return f"{self.kept_matrices:.1%} of their norm kept, {self.kept_all:.1%} of the vector's"

    def to_json(self) -> dict[str, Any]:
        """All of it, for machines."""
        return {
            "out": str(self.target),
            "transforms": self.transforms,
            "kept_norm": self.kept_all,
            "kept_norm_of_matrices": self.kept_matrices,
            "kept_norm_by_tensor": dict(self.kept),
            "bytes_written": self.nbytes,
        }


class AdapterReport(ExtractionReport[Factored]):
    """What writing adapters did. tensors: those that became factors."""


@dataclass
class _Sums:
    """Squares of a vector's differences, and of what is kept of them, by tensor."""

    squares: dict[str, float] = field(default_factory=dict)
    kept: dict[str, float] = field(default_factory=dict)


def write_adapters(
    plan: AdapterPlan, *, threads: int | None = None, progress: Progress | None = None
) -> AdapterReport:
    """Carry out ``plan``: staged, renamed into place at the end.

    ``progress(done, total)`` gets bytes read. Memory: the largest matrix, of every vector.

    Raises NonFiniteError, WriteError, OutputError, CheckpointError; then nothing was written.
    """
    start = time.perf_counter()
    targets = plan.plan.targets
    with contextlib.ExitStack() as stack:
        stagings = [stack.enter_context(plan.plan.staging(target)) for target in targets]
        gauge = ReadGauge(progress, plan.plan.plan.bytes_read * passes(plan.plan))
        job = _Job(plan, stagings)
        job.run(_affordable(plan, threads or env.threads()), gauge)
        if job.nonfinite:
            advice = "use --dtype f32"
            refuse_nonfinite(plan.plan.plan, job.nonfinite, targets[0].path, advice)
        outputs = tuple(job.finish(number) for number in range(len(targets)))
        notes = publish(stagings)
    return AdapterReport(
        outputs,
        time.perf_counter() - start,
        gauge.bytes_read,
        len(plan.layers.modules),
        (*plan.plan.notes, *notes),
    )


def _affordable(plan: AdapterPlan, threads: int) -> int:
    """``threads``, or fewer when their memory would be too much."""
    shapes = {name: plan.shapes[name] for name in plan.layers.modules}
    each = max(
        4 * rows * columns * len(plan.plan.targets) + memory((rows, columns), plan.ranks[name])
        for name, (rows, columns) in shapes.items()
    )
    return max(1, min(threads, _MEMORY // max(each, 1)))


class _Job:
    """One run's files, and what was seen."""

    def __init__(self, plan: AdapterPlan, stagings: Sequence[Staging]) -> None:
        self._plan, self._stagings = plan, stagings
        self._targets = plan.plan.targets
        self._files: list[StagedFile] = []
        self._sums = [_Sums() for _ in self._targets]
        self._lock = threading.Lock()
        self.nonfinite: Counter[str] = Counter()

    def run(self, threads: int, read: ReadGauge) -> None:
        plan = self._plan.plan.plan
        for target, staging in zip(self._targets, self._stagings, strict=True):
            (output,) = target.outputs
            self._files.append(staging.create(output.name, output.size))
            staging.write(self._files[-1], output.prefix, 0)
        with opened_sources(plan, len(self._files)) as sources:
            factors = FactorCache(sources, plan)
            apply = applied(self._plan.plan, sources, factors, threads, read)

            def worker() -> Callable[[int], int]:
                reader = Reader(sources, factors)

                def do(number: int) -> int:
                    self._tensor(number, reader, apply, read)
                    return 0

                return do

            order = sorted(range(len(plan.segments)), key=lambda n: -plan.segments[n].count)
            work_off(order, worker, threads=threads)
        read.finish()

    def _tensor(
        self, number: int, reader: Reader, apply: Applied, read: Callable[[int], None]
    ) -> None:
        """Factors of tensor ``number``, or only its norm."""
        segment = self._plan.plan.plan.segments[number]
        wanted = range(len(self._targets))
        matrix = segment.tensor in self._plan.layers.modules
        deltas = [np.empty(segment.count if matrix else 0, np.float32) for _ in wanted]
        squares = [0.0 for _ in wanted]
        for first in range(0, segment.count, _BLOCK):
            count = min(_BLOCK, segment.count - first)
            block = reader.read(segment, first, count, wanted)
            if block.nonfinite:
                with self._lock:
                    self.nonfinite[segment.tensor] += block.nonfinite
                return
            apply(segment, number, first, block.deltas)
            for vector, delta in enumerate(block.deltas):
                if matrix:
                    deltas[vector][first : first + count] = delta
                else:
                    squares[vector] += float(np.sum(np.square(delta, dtype=np.float64)))
            read(block.nbytes)
        for vector in wanted:
            if matrix:
                self._factor(vector, segment, deltas[vector])
            else:
                with self._lock:
                    self._sums[vector].squares[segment.tensor] = squares[vector]

    def _factor(self, vector: int, segment: Segment, delta: np.ndarray) -> None:
        """Write the factors of ``delta``, all of a matrix."""
        plan = self._plan
        name_a, name_b = factor_names(plan.layers.modules[segment.tensor])
        matrix = delta.reshape(plan.shapes[segment.tensor])
        found = truncate(matrix.T if plan.layers.transposed else matrix, plan.ranks[segment.tensor])
        for name, factor in ((name_a, found.right), (name_b, found.left)):
            dtype = plan.plan.extraction.dtype
            out = Operand(np.empty(factor.size, dtype.storage), dtype)
            values = np.ascontiguousarray(factor).reshape(-1)
            bad = combine(Operand(values, F32), (), out).nonfinite
            data = out.array.view(np.uint8).data
            staging, file = self._stagings[vector], self._files[vector]
            staging.write(file, data, plan.offsets[vector][name])
            if bad:
                with self._lock:
                    self.nonfinite[segment.tensor] += bad
        with self._lock:
            self._sums[vector].squares[segment.tensor] = found.squares
            self._sums[vector].kept[segment.tensor] = found.kept

    def finish(self, number: int) -> Factored:
        """Stage the small files of output ``number``."""
        target, staging, sums = self._targets[number], self._stagings[number], self._sums[number]
        (output,) = target.outputs
        written = Factored(
            target.path,
            self._plan.plan.extraction.transforms.text(number, len(self._targets)),
            {
                name: _share(sums.kept[name], sums.squares[name])
                for name in self._plan.layers.modules
            },
            _share(
                math.fsum(sums.kept.values()), math.fsum(sums.squares[name] for name in sums.kept)
            ),
            _share(math.fsum(sums.kept.values()), math.fsum(sums.squares.values())),
            output.size,
        )
        for name, data in target.index:
            staging.add(name, data)
        record = {
            **target.metadata,
            "kept_norm": written.kept_all,
            "kept_norm_by_tensor": written.kept,
        }
        digest = _digest(self._files[number], output.size)
        record = with_files(record, target.outputs, (digest,), target.index)
        staging.add(RECIPE_NAME, dump(record))
        return written


def _share(kept: float, squares: float) -> float:
    """The share of a norm, 1 of nothing."""
    return float(f"{math.sqrt(kept / squares):.6g}") if squares else 1.0


def _digest(file: StagedFile, size: int) -> str:
    return root_digest(
        block_digest(file.read(min(BLOCK, size - start), start)) for start in range(0, size, BLOCK)
    )
