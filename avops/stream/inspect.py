"""inspect: what a checkpoint holds, how large alignment vectors are, and how they relate.

Tensors are grouped by name with layer numbers replaced by ``*``. Norms are Euclidean, summed in
float64 over float32 differences.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from avops.disk import (
    Checkpoint,
    LowRank,
    Tensor,
    Vector,
    check_plain,
    check_vector,
    open_regular,
    read_exactly,
)
from avops.dtypes import F32
from avops.errors import MismatchError
from avops.kernels import Factors, Operand, combine, diff, factors, lowrank

_CHUNK = 1 << 19
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")


@dataclass
class Group:
    """Tensors of one group: how many, their elements and bytes, dtypes and shapes."""

    name: str
    tensors: int = 0
    elements: int = 0
    nbytes: int = 0
    dtypes: set[str] = field(default_factory=set)
    shapes: set[tuple[int, ...]] = field(default_factory=set)


@dataclass
class Touched:
    """Base tensors of one group that an adapter changes: by which ranks and scales, or whole."""

    name: str
    tensors: int = 0
    whole: int = 0
    ranks: set[int] = field(default_factory=set)
    scales: set[float] = field(default_factory=set)
    shapes: set[tuple[int, ...]] = field(default_factory=set)


@dataclass
class Size:
    """Sums over elements: their number, how many are 0, and the sum of squares."""

    elements: int = 0
    zeros: int = 0
    squares: float = 0.0

    @property
    def norm(self) -> float:
        """Euclidean norm."""
        return float(np.sqrt(self.squares))


@dataclass(frozen=True)
class VectorReport:
    """Sizes per group and in all of each vector, and pairwise cosines.

    cosines[i][j]: of vectors i and j over all tensors (NaN when one is all zeros).
    """

    names: tuple[str, ...]
    groups: tuple[dict[str, Size], ...]
    totals: tuple[Size, ...]
    cosines: tuple[tuple[float, ...], ...]


def group_of(name: str) -> str:
    """The group of the tensor ``name``: ``model.layers.3.mlp...`` → ``model.layers.*.mlp...``."""
    return _NUMBER.sub("*", name)


def inspect_checkpoint(checkpoint: Checkpoint) -> dict[str, Group]:
    """The groups of ``checkpoint`` in file order, from headers alone."""
    groups: dict[str, Group] = {}
    for tensor in checkpoint.tensors.values():
        group = groups.setdefault(group_of(tensor.name), Group(group_of(tensor.name)))
        group.tensors += 1
        group.elements += tensor.count
        group.nbytes += tensor.nbytes
        group.dtypes.add(tensor.dtype.tag)
        group.shapes.add(tensor.shape)
    return groups


def inspect_adapter(vector: Vector) -> dict[str, Touched]:
    """The groups of base tensors that ``vector`` changes, from headers and settings alone."""
    groups: dict[str, Touched] = {}
    for name, part in vector.parts.items():
        group = groups.setdefault(group_of(name), Touched(group_of(name)))
        group.tensors += 1
        group.shapes.add(part.shape)
        if isinstance(part, LowRank):
            group.ranks.add(part.rank)
            group.scales.add(part.scale)
        else:
            group.whole += 1
    return groups


def inspect_vectors(
    vectors: Sequence[Vector],
    base: Checkpoint | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> VectorReport:
    """Sizes and cosines of ``vectors``, streamed; ``base`` is needed for aligned weights.

    ``progress(done, total)`` gets elements.

    Raises MismatchError when aligned weights come without a base, or do not fit it.
    """
    for vector in vectors:
        if vector.needs_base and base is None:
            what = "an adapter with whole tensors" if vector.adapter else "an aligned checkpoint"
            raise MismatchError(
                f"AV {vector.name} ({vector.checkpoint.path}): {what}, which needs "
                "its base to be measured; give --base"
            )
        if base is not None:
            check_vector(base, vector)
    count = len(vectors)
    groups: tuple[dict[str, Size], ...] = tuple({} for _ in vectors)
    totals = tuple(Size() for _ in vectors)
    dots = np.zeros((count, count))
    with _Files() as files:
        counts = _floating_names(vectors, base)
        done, total = 0, sum(counts.values())
        for name, elements in counts.items():
            _measure(name, vectors, base, files, (groups, totals, dots))
            done += elements
            if progress is not None:
                progress(done, total)
    with np.errstate(invalid="ignore", divide="ignore"):
        norms = np.sqrt(np.diag(dots))
        cosines = dots / np.outer(norms, norms)
    return VectorReport(
        tuple(vector.name for vector in vectors),
        groups,
        totals,
        tuple(tuple(float(x) for x in row) for row in cosines),
    )


def _floating_names(vectors: Sequence[Vector], base: Checkpoint | None) -> dict[str, int]:
    """Name to number of elements, over all vectors; what the base lacks does not count."""
    names: dict[str, int] = {}
    for vector in vectors:
        check_plain(vector.checkpoint)
        for name, part in vector.parts.items():
            if not part.computable or (base is not None and name not in base.tensors):
                continue
            if names.setdefault(name, part.count) != part.count:
                raise MismatchError(
                    f"AV {vector.name} ({vector.checkpoint.path}): tensor {name!r} has "
                    f"{part.count} elements, but {names[name]} in another AV"
                )
    return names


def _measure(
    name: str,
    vectors: Sequence[Vector],
    base: Checkpoint | None,
    files: _Files,
    sums: tuple[tuple[dict[str, Size], ...], tuple[Size, ...], np.ndarray],
) -> None:
    groups, totals, dots = sums
    holders = [i for i, vector in enumerate(vectors) if name in vector.parts]
    count = vectors[holders[0]].parts[name].count
    for start in range(0, count, _CHUNK):
        size = min(_CHUNK, count - start)
        deltas = {i: _delta(name, vectors[i], base, files, (start, size)) for i in holders}
        for i, delta in deltas.items():
            for total in (totals[i], groups[i].setdefault(group_of(name), Size())):
                total.elements += size
                total.zeros += size - int(np.count_nonzero(delta))
                total.squares += float(delta @ delta)
            for j, other in deltas.items():
                dots[i, j] += float(delta @ other)


def _delta(
    name: str, vector: Vector, base: Checkpoint | None, files: _Files, part: tuple[int, int]
) -> np.ndarray:
    """Part (start, size) of tensor ``name`` as a float64 difference."""
    out = Operand(np.empty(part[1], np.float32), F32)
    found = vector.parts[name]
    if isinstance(found, LowRank):
        lowrank(files.factors(vector.checkpoint, found), part[0], out)
    else:
        values = files.read(vector.checkpoint, found.tensor, part)
        if found.aligned:
            assert base is not None
            diff(files.read(base, base.tensors[name], part), values, out)
        else:
            combine(values, (), out)
    wide: np.ndarray = out.array.astype(np.float64)
    return wide


class _Files:
    """Descriptors opened once each, and the factors of the tensor at work."""

    def __init__(self) -> None:
        self._fds: dict[str, int] = {}
        self._factors: dict[str, tuple[LowRank, Factors]] = {}

    def __enter__(self) -> _Files:
        return self

    def __exit__(self, *exc: object) -> None:
        for fd in self._fds.values():
            os.close(fd)

    def read(self, checkpoint: Checkpoint, tensor: Tensor, part: tuple[int, int]) -> Operand:
        """Elements (start, size) of ``tensor``."""
        start, count = part
        path = checkpoint.shards[tensor.shard].path
        if str(path) not in self._fds:
            self._fds[str(path)] = open_regular(path)
        raw = np.empty(count * tensor.dtype.size, np.uint8)
        offset = tensor.offset + start * tensor.dtype.size
        read_exactly(self._fds[str(path)], raw.data, offset, str(path))
        return Operand(raw.view(tensor.dtype.storage), tensor.dtype)

    def factors(self, checkpoint: Checkpoint, part: LowRank) -> Factors:
        """The factors of ``part``, kept until another part of ``checkpoint`` is asked for."""
        where = str(checkpoint.path)
        if where not in self._factors or self._factors[where][0] != part:
            a = self.read(checkpoint, part.a, (0, part.a.count))
            b = self.read(checkpoint, part.b, (0, part.b.count))
            made = factors(a, b, rank=part.rank, scale=part.scale, transposed=part.transposed)
            self._factors[where] = (part, made)
        return self._factors[where][1]
