"""diff: which tensors of two checkpoints differ, and by how much.

Tensors are paired by name, however each checkpoint is sharded, and read in blocks: memory is
threads × two blocks, whatever their size.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from avops import env
from avops.disk import Checkpoint, Tensor, open_checkpoint, sidecars
from avops.disk.digest import BLOCK
from avops.disk.source import ALIGN, Source, aligned_memory
from avops.stream.crew import Progress, work_off
from avops.stream.elements import Comparer, Tally, comparable, sized


@dataclass(frozen=True)
class TensorDiff:
    """A tensor that both have and that differs.

    elements: how many it has (bytes, where elements are narrower). differing: how many of them
    differ in value. bits_only: how many are equal in value, but not in bits (-0 and +0, NaNs).
    nonfinite: NaN and infinities in each. max_ulp, max_abs, norm = ‖A − B‖ and relative =
    ‖A − B‖/‖A‖ (infinite when ‖A‖ is 0) are over elements that are finite in both; None where a
    difference has no size, or shapes or kinds do not allow to compare at all: then ``differing``
    is None, too.
    """

    name: str
    a: Tensor
    b: Tensor
    elements: int
    differing: int | None = None
    bits_only: int = 0
    nonfinite: tuple[int, int] = (0, 0)
    max_ulp: float | None = None
    max_abs: float | None = None
    norm: float | None = None
    relative: float | None = None


@dataclass(frozen=True)
class DiffReport:
    """Two checkpoints compared. Names of files that differ are by where they are.

    tensors: how many both have. changed: those that differ, the largest relative norm first.
    """

    a: Checkpoint
    b: Checkpoint
    tensors: int
    changed: tuple[TensorDiff, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    files_differ: tuple[str, ...]
    files_only_a: tuple[str, ...]
    files_only_b: tuple[str, ...]
    bytes_read: int
    seconds: float

    @property
    def equal(self) -> bool:
        """Whether tensors (dtypes and bits) and small files are the same."""
        files = self.files_differ or self.files_only_a or self.files_only_b
        return not (self.changed or self.only_a or self.only_b or files)


def compare(
    a: str | os.PathLike[str],
    b: str | os.PathLike[str],
    *,
    threads: int | None = None,
    progress: Progress | None = None,
) -> DiffReport:
    """Compare the checkpoints at ``a`` and ``b``. ``progress(done, total)`` gets bytes.

    Of two directories the small files of a model are compared, too (config, tokenizer, ...).
    Raises CheckpointError when one cannot be read.
    """
    start = time.perf_counter()
    one, two = open_checkpoint(a), open_checkpoint(b)
    shared = [tensor for name, tensor in one.tensors.items() if name in two.tensors]
    pairs = [_Pair(tensor, two.tensors[tensor.name]) for tensor in shared]
    with _Files(one) as files_a, _Files(two) as files_b:
        _run(pairs, files_a, files_b, threads or env.workers(), progress)
    changed = [pair.result() for pair in pairs if pair.differs]
    differ, only_a, only_b = _small_files(one, two)
    return DiffReport(
        one,
        two,
        len(pairs),
        tuple(sorted(changed, key=_order)),
        tuple(name for name in one.tensors if name not in two.tensors),
        tuple(name for name in two.tensors if name not in one.tensors),
        differ,
        only_a,
        only_b,
        sum(pair.nbytes for pair in pairs),
        time.perf_counter() - start,
    )


@dataclass
class _Pair:
    """A tensor in both checkpoints, and what was seen of it.

    squares, difference: sums of each block that differs. equal: where the other blocks start.
    """

    a: Tensor
    b: Tensor
    seen: Tally = field(default_factory=Tally)
    squares: array[float] = field(default_factory=lambda: array("d"))
    difference: array[float] = field(default_factory=lambda: array("d"))
    equal: array[int] = field(default_factory=lambda: array("q"))

    @property
    def readable(self) -> bool:
        """Whether elements can be compared one by one."""
        return self.a.shape == self.b.shape and comparable(self.a.dtype, self.b.dtype)

    @property
    def nbytes(self) -> int:
        return self.a.nbytes + self.b.nbytes if self.readable else 0

    @property
    def units(self) -> tuple[int, int]:
        """Bytes per element, 1 where elements are no whole bytes."""
        bits = (self.a.dtype.bits, self.b.dtype.bits)
        return (bits[0] // 8 or 1, bits[1] // 8 or 1) if not any(n % 8 for n in bits) else (1, 1)

    @property
    def elements(self) -> int:
        return self.a.nbytes // self.units[0]

    @property
    def step(self) -> int:
        """Elements in a block."""
        return BLOCK // max(self.units)

    @property
    def differs(self) -> bool:
        if not self.readable or self.a.dtype != self.b.dtype:
            return True
        return bool(self.seen.differing or self.seen.bits_only)

    def add(self, part: Tally) -> None:
        self.seen.add(part)
        self.squares.append(part.squares)
        self.difference.append(part.difference)

    def result(self) -> TensorDiff:
        a, b, seen = self.a, self.b, self.seen
        found = TensorDiff(a.name, a, b, self.elements)
        if not self.readable:
            return found
        found = replace(
            found, differing=seen.differing, bits_only=seen.bits_only, nonfinite=seen.nonfinite
        )
        if not sized(a.dtype, b.dtype):
            return found
        # fsum is exact, so the order in which threads came in does not show.
        norm, size = (math.sqrt(math.fsum(sums)) for sums in (self.difference, self.squares))
        return replace(
            found,
            max_ulp=seen.max_ulp if a.dtype.floating and b.dtype.floating else None,
            max_abs=seen.max_abs,
            norm=norm,
            relative=norm / size if size else math.inf if norm else 0.0,
        )


def _order(found: TensorDiff) -> tuple[float, str]:
    """What cannot be compared first, then the largest relative norm; bytes only comes last."""
    if found.differing is None:
        return (-math.inf, found.name)
    return (1.0 if found.relative is None else -found.relative, found.name)


class _Files:
    """The shards of a checkpoint, opened once each."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._sources: list[Source] = []
        with contextlib.ExitStack() as stack:
            stack.callback(self.close)
            for shard in checkpoint.shards:
                self._sources.append(Source(shard.path, shard.identity))
            stack.pop_all()

    def __enter__(self) -> _Files:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        for source in self._sources:
            source.close()

    def check(self) -> None:
        for source in self._sources:
            source.check()

    def read(self, memory: memoryview, tensor: Tensor, start: int, nbytes: int) -> np.ndarray:
        """Bytes of ``tensor`` from ``start`` on, in ``memory``, which is aligned."""
        offset = tensor.offset + start
        at = offset % ALIGN
        self._sources[tensor.shard].read(memory, at, offset, nbytes)
        return np.frombuffer(memory, np.uint8, nbytes, at)


def _run(
    pairs: list[_Pair],
    files_a: _Files,
    files_b: _Files,
    threads: int,
    progress: Progress | None,
) -> None:
    """Fill the pairs."""
    lock = threading.Lock()

    def worker(again: bool) -> _Worker:
        return _Worker(files_a, files_b, lock, again=again)

    total = sum(pair.nbytes for pair in pairs)
    work_off(
        ((pair, start) for pair in pairs for start in _starts(pair)),
        lambda: worker(again=False),
        threads=threads,
        progress=progress,
        total=total,
    )
    # ‖A‖ of a tensor that differs has its equal blocks in it, too; of others it is not needed.
    again = [(pair, start) for pair in pairs if pair.differs for start in pair.equal]
    if again:
        work_off(iter(again), lambda: worker(again=True), threads=threads)
    for files in (files_a, files_b):
        files.check()


def _starts(pair: _Pair) -> Iterator[int]:
    return iter(range(0, pair.elements, pair.step) if pair.readable else ())


class _Worker:
    """One thread's memory. ``again``: the block is known to be equal in both, and is summed up."""

    def __init__(
        self, files_a: _Files, files_b: _Files, lock: threading.Lock, *, again: bool
    ) -> None:
        self._files, self._lock, self._again = (files_a, files_b), lock, again
        self._comparer = Comparer()
        self._memory = [memoryview(aligned_memory(BLOCK + 2 * ALIGN)) for _ in range(2)]

    def __call__(self, item: tuple[_Pair, int]) -> int:
        pair, start = item
        count = min(pair.step, pair.elements - start)
        raw = [self._read(pair, which, start, count) for which in ((0,) if self._again else (0, 1))]
        same = pair.a.dtype == pair.b.dtype
        if not self._again and same and np.array_equal(raw[0], raw[1]):
            with self._lock:
                pair.equal.append(start)
        else:
            part = self._comparer.tally(raw[0], raw[-1], pair.a.dtype, pair.b.dtype)
            with self._lock:
                pair.add(part)
        return sum(array.size for array in raw)

    def _read(self, pair: _Pair, which: int, start: int, count: int) -> np.ndarray:
        tensor, unit = (pair.a, pair.b)[which], pair.units[which]
        files, memory = self._files[which], self._memory[which]
        return files.read(memory, tensor, start * unit, count * unit)


def _small_files(
    a: Checkpoint, b: Checkpoint
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Small files that differ, or are in one only. Of directories: a file may lie anywhere."""
    if a.is_file or b.is_file:
        return (), (), ()
    one, two = (sidecars(c.directory, known_only=False)[0] for c in (a, b))
    return (
        tuple(sorted(name for name in one.keys() & two.keys() if one[name] != two[name])),
        tuple(sorted(one.keys() - two.keys())),
        tuple(sorted(two.keys() - one.keys())),
    )
