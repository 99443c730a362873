"""verify: re-read a checkpoint and say everything that is wrong with it.

Sizes and digests against the recipe that merge wrote, headers, the index both ways, total_size,
and finite values: one pass over the bytes for all of it. A checkpoint without a recipe is
checked without digests. Nothing that was read is trusted; every problem is listed.
"""

from __future__ import annotations

import bisect
import os
import threading
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from avops import env
from avops.disk import Tensor, open_checkpoint
from avops.disk.digest import BLOCK, block_digest, root_digest
from avops.disk.source import Identity, Source, aligned_memory, open_regular
from avops.errors import CheckpointError
from avops.stream.claims import Claims, check_index, own_weights, read_claims
from avops.stream.crew import Progress, work_off
from avops.stream.finite import can_be_nonfinite, count_nonfinite, unit


@dataclass(frozen=True)
class Problem:
    """Something wrong: in which file of the checkpoint, and what."""

    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


@dataclass(frozen=True)
class VerifyReport:
    """What was checked, and what was found. recipe: the recipe file's name, if there is one.

    files: how many were looked at. digests: how many of them were compared with the recipe's.
    tensors: how many have a good header. nonfinite: NaN and infinities by tensor, problems or not.
    """

    path: Path
    recipe: str | None
    files: int
    digests: int
    tensors: int
    nonfinite: dict[str, int]
    bytes_read: int
    seconds: float
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]


def verify(
    path: str | os.PathLike[str],
    *,
    allow_nonfinite: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
) -> VerifyReport:
    """Check the output of a merge, or any checkpoint, at ``path``.

    allow_nonfinite: NaN and infinities are noted, and are no problems. ``progress(done, total)``
    gets bytes. Raises CheckpointError when ``path`` cannot be opened, or changes meanwhile; what
    is wrong with what is there is in the report.
    """
    start = time.perf_counter()
    job = _Job(Path(path))
    job.survey()
    read = [file for file in job.files if file.wanted or file.looked_at]
    _read(read, threads or env.workers(), progress)
    job.conclude(allow_nonfinite=allow_nonfinite)
    lost: Counter[str] = Counter()
    for file in job.files:
        lost.update(file.lost)
    return VerifyReport(
        job.path,
        job.claims.recipe,
        len(job.files),
        sum(1 for file in job.files if file.wanted),
        sum(len(file.tensors) for file in job.files),
        dict(lost),
        sum(file.identity.size for file in read),
        time.perf_counter() - start,
        tuple(job.problems),
        tuple(job.notes),
    )


@dataclass
class _File:
    """A file to check. tensors: of a good header. wanted: the digest that it should have."""

    name: str
    path: Path
    identity: Identity
    tensors: tuple[Tensor, ...] = ()
    wanted: str | None = None
    digests: list[bytes] = field(default_factory=list)
    lost: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.looked_at = [t for t in self.tensors if t.nbytes and can_be_nonfinite(t.dtype)]
        self._starts = [tensor.offset for tensor in self.looked_at]
        self.digests = [b""] * -(-self.identity.size // BLOCK)

    def within(self, start: int, end: int) -> list[Tensor]:
        """The floating tensors with bytes between two offsets in the file."""
        first = max(0, bisect.bisect_right(self._starts, start) - 1)
        return self.looked_at[first : bisect.bisect_left(self._starts, end)]


class _Job:
    """One verification: survey names and headers, and conclude when the bytes are read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.problems: list[Problem] = []
        self.files: list[_File] = []
        try:
            path.stat()
            self._is_directory = path.is_dir()
            self._directory = path if self._is_directory else path.parent
            self._present = sorted(os.listdir(self._directory))
        except OSError as error:
            raise CheckpointError(
                f"{path}: cannot open the checkpoint: {error.strerror}; "
                "expected a .safetensors file or a directory with one"
            ) from None
        self.claims: Claims = read_claims(path, self._present)
        self.notes = self.claims.notes
        self._say(self.claims.problems)

    def _say(self, problems: Iterable[tuple[str, str]]) -> None:
        self.problems += [Problem(where, what) for where, what in problems]

    def survey(self) -> None:
        """Open every file that belongs to the checkpoint, and hold the index against them."""
        names = [self.path.name]
        if self._is_directory:
            names = list(dict.fromkeys((*self.claims.files, *self.claims.shards)))
            if not any(name.endswith(".safetensors") for name in names):
                names += own_weights(self._present)
        shards = {name: tensors for name in names if (tensors := self._open(name)) is not None}
        if self._is_directory:
            self._say(check_index(self.claims, shards))
            extra = sorted(set(self._present) - {*names, self.claims.recipe})
            if extra and self.claims.files:
                self.notes.append(f"not in the recipe, so not checked: {', '.join(extra)}")
        if not self.problems and "adapter_config.json" not in self._present:
            try:
                # Whatever else keeps the checkpoint from being opened.
                open_checkpoint(self.path)
            except CheckpointError as error:
                self._say([(self.path.name, str(error).removeprefix(f"{self.path}: "))])

    def _open(self, name: str) -> tuple[Tensor, ...] | None:
        """Take the file ``name`` in. Returns its tensors if it has a good header."""
        path, claim = self._directory / name, self.claims.files.get(name)
        tensors = None
        try:
            if not os.path.lexists(path):
                by = self.claims.named_by(name)
                raise CheckpointError(f"missing, but {by}; copy or merge it again")
            fd = open_regular(path)
            identity = Identity.of(fd)
            os.close(fd)
            if name.endswith(".safetensors") or not self._is_directory:
                tensors = self._tensors(path)
        except CheckpointError as error:
            self._say([(name, str(error).removeprefix(f"{path}: "))])
            return None
        wanted = claim.digest if claim else None
        if claim and claim.size not in (None, identity.size):
            self._say([(name, f"{identity.size:,} bytes, expected {claim.size:,}; copy it again")])
            wanted = None  # It cannot be right, and one problem is enough.
        self.files.append(_File(name, path, identity, tensors or (), wanted))
        return tensors

    def _tensors(self, path: Path) -> tuple[Tensor, ...] | None:
        try:
            return open_checkpoint(path).shards[0].tensors
        except CheckpointError as error:
            self._say([(path.name, str(error).removeprefix(f"{path}: "))])
            return None

    def conclude(self, *, allow_nonfinite: bool) -> None:
        """Compare digests and counts with what they should be."""
        for file in self.files:
            if file.wanted and (found := root_digest(file.digests)) != file.wanted:
                what = f"its xxh3 digest is {found}, expected {file.wanted}: its bytes were changed"
                self._say([(file.name, f"{what}; copy or merge it again")])
            for tensor in file.tensors:
                count = file.lost[tensor.name]
                values = "value is" if count == 1 else "values are"
                what = f"tensor {tensor.name!r}: {count:,} {values} NaN or infinite"
                if count and allow_nonfinite:
                    self.notes.append(f"{file.name}: {what}, as allowed")
                elif count:
                    self._say([(file.name, what)])


def _read(files: list[_File], threads: int, progress: Progress | None) -> None:
    """One pass over ``files``: fill their digests, and count what is not finite."""
    sources: dict[str, Source] = {}
    lock = threading.Lock()
    try:
        for file in files:
            sources[file.name] = Source(file.path, file.identity)
        work_off(
            [(file, number) for file in files for number in range(len(file.digests))],
            lambda: _Reader(sources, lock),
            threads=threads,
            progress=progress,
            total=sum(file.identity.size for file in files),
        )
        for source in sources.values():
            source.check()
    finally:
        for source in sources.values():
            source.close()


class _Reader:
    """One thread's memory, and its way through a block."""

    def __init__(self, sources: dict[str, Source], lock: threading.Lock) -> None:
        self._sources, self._lock = sources, lock
        self._memory = memoryview(aligned_memory(BLOCK))
        self._bytes = np.frombuffer(self._memory, np.uint8)
        self._scratch = np.empty(BLOCK, np.uint8)

    def __call__(self, item: tuple[_File, int]) -> int:
        file, number = item
        start = number * BLOCK
        end = min(start + BLOCK, file.identity.size)
        self._sources[file.name].read(self._memory, 0, start, end - start)
        if file.wanted:
            file.digests[number] = block_digest(self._memory[: end - start])
        for tensor in file.within(start, end):
            count = self._count(file, tensor, start, end)
            if count:
                with self._lock:
                    file.lost[tensor.name] += count
        return end - start

    def _count(self, file: _File, tensor: Tensor, start: int, end: int) -> int:
        """Values of ``tensor`` that begin in the block and are not finite."""
        size = unit(tensor.dtype)
        first = max(tensor.offset, start)
        first += (tensor.offset - first) % size
        last = min(tensor.offset + tensor.nbytes, end)
        if first >= last:
            return 0
        whole = first + (last - first) // size * size
        found = count_nonfinite(
            self._bytes[first - start : whole - start], tensor.dtype, self._scratch
        )
        if whole < last:
            # Data that is not aligned: a value goes on in the next block.
            value = bytearray(size)
            self._sources[file.name].read_all(memoryview(value), whole)
            found += count_nonfinite(np.frombuffer(value, np.uint8), tensor.dtype, self._scratch)
        return found
