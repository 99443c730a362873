"""How tensors are cut for a device: pieces, gathered into groups that share one image.

An image is a stretch of bytes with a group's base values first, then the stored values of each
alignment vector: the same on the host and on the device, so that one copy moves each of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from avops.disk import LowRank, Tensor
from avops.knobs.mapped import MappedVector
from avops.knobs.targets import Target

# Bytes of an image, unless one piece needs more: large enough that a copy runs at full speed.
IMAGE = 1 << 26
# What every place in an image is a multiple of.
ALIGN = 256
_LONGEST = 1 << 32
_GOLDEN, _MASK = 0x9E3779B97F4A7C15, (1 << 64) - 1


@dataclass(frozen=True)
class Read:
    """``nbytes`` bytes at ``offset`` of file ``file``, which go to ``at`` in the image."""

    file: int
    offset: int
    nbytes: int
    at: int


@dataclass(frozen=True)
class Piece:
    """``count`` elements of target number ``target`` from flat index ``start`` on.

    places: in the image, of the base's values and of each vector's, None where nothing is stored.
    key: of dithered rounding by which the piece's first element has index 0.
    """

    target: int
    start: int
    count: int
    places: tuple[int | None, ...]
    key: int | None


@dataclass(frozen=True)
class Group:
    """Pieces that share an image. spans and reads: of the base's values, then of each vector's."""

    number: int
    pieces: tuple[Piece, ...]
    nbytes: int
    spans: tuple[tuple[int, int], ...]
    reads: tuple[tuple[Read, ...], ...]


@dataclass(frozen=True)
class _Cut:
    """A piece before it has a place. stored: the tensors of base and vectors, None for none."""

    target: int
    start: int
    count: int
    stored: tuple[Tensor | None, ...]
    key: int | None

    @property
    def nbytes(self) -> int:
        """Bytes in the image at most."""
        return sum(_up(self.count * t.dtype.size) for t in self.stored if t is not None)


def cut(
    targets: Sequence[Target], vectors: Sequence[MappedVector], files: Sequence[int]
) -> tuple[Group, ...]:
    """The groups of ``targets``. files: the number of the first file of base and vectors."""
    groups: list[Group] = []
    waiting: list[_Cut] = []
    filled = 0
    for number, target in enumerate(targets):
        for piece in _cuts(number, target, vectors):
            if waiting and filled + piece.nbytes > IMAGE:
                groups.append(_group(len(groups), waiting, files))
                waiting, filled = [], 0
            waiting.append(piece)
            filled += piece.nbytes
    if waiting:
        groups.append(_group(len(groups), waiting, files))
    return tuple(groups)


def stored_parts(target: Target, vectors: Sequence[MappedVector]) -> tuple[Tensor | None, ...]:
    """The tensors that are stored for ``target``: the base's, then each vector's."""
    parts = [vector.vector.parts.get(target.name) for vector in vectors]
    stored = (None if part is None or isinstance(part, LowRank) else part.tensor for part in parts)
    return (target.base, *stored)


def shifted_key(key: int, start: int) -> int:
    """The key by which index j hashes as index ``start`` + j does by ``key``.

    For j below a power of two, at most 2^32, of which start is a multiple: there the sum is the
    exclusive or, so start moves from the index into the key's hash, which can be inverted.
    """
    mixed = _mix((key + ((start >> 32) + 1) * _GOLDEN) & _MASK) ^ (start & 0xFFFFFFFF)
    return (_unmix(mixed) - _GOLDEN) & _MASK


def _cuts(number: int, target: Target, vectors: Sequence[MappedVector]) -> Iterator[_Cut]:
    stored = stored_parts(target, vectors)
    step = _step(target, vectors, sum(t.dtype.size for t in stored if t is not None))
    for start in range(0, target.base.count, step):
        count = min(step, target.base.count - start)
        key = target.key if target.key is None or not start else shifted_key(target.key, start)
        yield _Cut(number, start, count, stored, key)


def _step(target: Target, vectors: Sequence[MappedVector], element: int) -> int:
    """Elements of each piece but the last. element: bytes stored for each element."""
    count = target.base.count
    step = min(max(ALIGN, 1 << (max(IMAGE // element, 1).bit_length() - 1)), _LONGEST)
    if count <= step or not any(vector.low_rank(target.name) for vector in vectors):
        return step
    # Factors are cut by rows.
    columns = count // target.base.shape[0]
    if target.key is None:
        rows = max(1, step // columns)
        return (rows - rows % 8 if rows > 8 else rows) * columns
    return max(step, columns) if columns & (columns - 1) == 0 else count


def _group(number: int, cuts: Sequence[_Cut], files: Sequence[int]) -> Group:
    places: list[list[int | None]] = [[] for _ in cuts]
    spans, reads, at = [], [], 0
    for owner, first in enumerate(files):
        begin, found = at, []
        for one, mine in zip(cuts, places, strict=True):
            tensor = one.stored[owner]
            mine.append(None if tensor is None else at)
            if tensor is not None:
                size = tensor.dtype.size
                offset, nbytes = tensor.offset + one.start * size, one.count * size
                found.append(Read(first + tensor.shard, offset, nbytes, at))
                at = _up(at + nbytes)
        spans.append((begin, at))
        reads.append(tuple(found))
    pieces = tuple(
        Piece(one.target, one.start, one.count, tuple(mine), one.key)
        for one, mine in zip(cuts, places, strict=True)
    )
    return Group(number, pieces, at, tuple(spans), tuple(reads))


def file_numbers(shards: Sequence[int]) -> tuple[int, ...]:
    """The number of each checkpoint's first file, of their numbers of shards."""
    return tuple(itertools.accumulate(shards[:-1], initial=0))


def _up(nbytes: int) -> int:
    return -(-nbytes // ALIGN) * ALIGN


def _mix(x: int) -> int:
    """The mixer of the dither's hash, on 64 bits (docs/arithmetic.md)."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & _MASK
    return x ^ (x >> 31)


def _unmix(x: int) -> int:
    """The number that ``_mix`` makes ``x`` of."""
    x = _unshift(x, 31) * pow(0x94D049BB133111EB, -1, 1 << 64) & _MASK
    x = _unshift(x, 27) * pow(0xBF58476D1CE4E5B9, -1, 1 << 64) & _MASK
    return _unshift(x, 30)


def _unshift(x: int, bits: int) -> int:
    """The number y with y ⊕ y≫bits = x."""
    y = x
    for _ in range(64 // bits):
        y = x ^ (y >> bits)
    return y
