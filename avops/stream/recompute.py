"""recompute: is this output, bit for bit, what its recipe gives? Computed again and compared."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from avops import env
from avops.disk import open_regular
from avops.disk.source import Identity, Source
from avops.errors import CheckpointError
from avops.recipe import RecipeFile
from avops.stream.counts import Counts
from avops.stream.decide import MergePlan, decide
from avops.stream.options import MergeOptions
from avops.stream.pipeline import Progress, run
from avops.stream.windows import Window


@dataclass(frozen=True)
class Recomputed:
    """The comparison. tensors: differing elements by tensor. problems: all other differences.

    equal: whether every file of weights is what the recipe gives.
    """

    tensors: Mapping[str, int]
    problems: tuple[str, ...]
    bytes_read: int
    seconds: float

    @property
    def equal(self) -> bool:
        """Whether nothing differs."""
        return not self.tensors and not self.problems


def recompute(
    path: Path,
    file: RecipeFile,
    *,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Recomputed:
    """Compare the weights at ``path``, an output of merge, with what ``file`` gives.

    The paths in ``file`` must be those of base and alignment vectors here. Raises what
    ``plan_merge`` raises, and CheckpointError when ``path`` cannot be read.
    """
    start = time.perf_counter()
    plan = decide([(file.recipe, path)], MergeOptions.recorded(file))
    sink = _Comparison(plan)
    try:
        run(plan.plan, [sink], threads=threads or env.workers(), progress=progress)
        sink.check()
    finally:
        sink.close()
    return Recomputed(
        dict(sink.tensors),
        tuple(sink.problems),
        plan.plan.bytes_read,
        time.perf_counter() - start,
    )


@dataclass
class _Comparison:
    """A sink that compares each window with what is in the output's files."""

    plan: MergePlan
    tensors: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._files: list[Source | None] = []
        self._headers: set[int] = set()
        self._lock = threading.Lock()

    @property
    def resumed(self) -> Mapping[tuple[int, int], Any]:
        """Nothing: every window is compared."""
        return {}

    def open(self) -> None:
        """Open the output's files; one of another size is not compared."""
        target = self.plan.targets[0]
        directory = target.path if target.directory else target.path.parent
        for output in target.outputs(self.plan.plan):
            path = directory / output.name
            found = _identity(path)
            if found is None:
                self.problems.append(f"{output.name}: missing")
            elif found.size != output.size:
                self.problems.append(
                    f"{output.name}: {found.size:,} bytes, expected {output.size:,}"
                )
            same = found is not None and found.size == output.size
            self._files.append(Source(path, found) if found is not None and same else None)

    def close(self) -> None:
        """Close the files."""
        for source in self._files:
            if source is not None:
                source.close()

    def check(self) -> None:
        """Raise CheckpointError when the output changed meanwhile."""
        for source in self._files:
            if source is not None:
                source.check()

    def matches(self, window: Window, digest: bytes) -> bool:
        """Never asked: nothing is resumed."""
        raise NotImplementedError

    def put(self, window: Window, data: memoryview, digest: bytes, counts: Counts) -> None:  # noqa: ARG002 - the sinks' interface
        """Compare the window, and say what of it differs."""
        source = self._files[window.output]
        if source is None:
            return
        there = np.empty(window.nbytes, np.uint8)
        source.read_all(there.data, window.start)
        wrong = there != np.frombuffer(data, np.uint8)
        if not wrong.any():
            return
        with self._lock:
            rest = wrong.copy()
            for piece in window.pieces:
                part = wrong[piece.at : piece.at + piece.nbytes]
                rest[piece.at : piece.at + piece.nbytes] = False
                # Bytes are counted as the elements that they belong to.
                size, copied = piece.segment.dtype.size, piece.segment.operation == "copy"
                first = piece.first if copied else piece.first * size + piece.skip
                elements = np.unique((np.flatnonzero(part) + first) // size).size
                if elements:
                    self.tensors[piece.segment.tensor] += elements
            if rest.any() and window.output not in self._headers:
                self._headers.add(window.output)
                name = self.plan.targets[0].outputs(self.plan.plan)[window.output].name
                self.problems.append(f"{name}: the header differs")


def _identity(path: Path) -> Identity | None:
    """Which file is at ``path``; None when there is none that could be opened."""
    try:
        fd = open_regular(path)
    except CheckpointError:
        return None
    try:
        return Identity.of(fd)
    finally:
        os.close(fd)
