"""Which launches of the Triton kernels a table takes: a fixed number, whatever the entries."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from avops.dtypes import F32
from avops.kernels.many import layout
from avops.kernels.many.entries import Entry, LowRank, Values

if TYPE_CHECKING:
    import torch

# Terms at most that a kernel is unrolled for; more are looped over.
UNROLLED = 8
# Classes of entries at most that get a kernel of their own, those with most elements first.
CLASSES = 4

# Four rows of a tile are numbered in 32 bits.
_MOST_COLUMNS = 1 << 28
_MOST_ROWS = 1 << 31
_STRETCH = 1 << 32


@dataclass(frozen=True)
class Sizes:
    """Elements in a block of ``dense`` and of ``flat``; rows and columns of a tile.

    Powers of two up to 2^14, since a block's counts share a 32-bit sum; flat divides dense.
    """

    dense: int
    flat: int
    rows: int
    columns: int


# Compiled: 16 elements a thread in dense blocks, 128 bytes in flight of four bf16 tensors; one
# warp in tiles, which takes four columns and four rows at a time. Interpreted: large blocks, since
# an operation costs the same for any size.
COMPILED = Sizes(dense=2048, flat=1024, rows=32, columns=128)
INTERPRETED = Sizes(dense=16384, flat=16384, rows=32, columns=512)
_WARPS = {"dense": 4, "flat": 4, "tiles": 1}


@dataclass(frozen=True)
class Launch:
    """One launch. kernel: its name in triton_kernels.py. chunks: int32, a row for each program.

    options: the kernel's constants.
    """

    kernel: str
    chunks: np.ndarray
    options: dict[str, int | bool]

    @property
    def warps(self) -> int:
        """Warps of a program."""
        return _WARPS[self.kernel]


@dataclass(frozen=True, order=True)
class _Class:
    """What entries have in common that one dense kernel serves: dtype codes and ways."""

    base: int
    out: int
    dithered: bool
    values: int
    aligned: bool


def plan(entries: Sequence[Entry], sizes: Sizes) -> list[Launch]:
    """The launches that together write every element of every entry once."""
    tiled: dict[bool, list[np.ndarray]] = defaultdict(list)
    classes: dict[_Class, list[int]] = defaultdict(list)
    flat: list[tuple[int, int]] = []  # (entry, first element)
    for number, entry in enumerate(entries):
        columns = _tile_columns(entry, sizes)
        found = _class(entry)
        if columns:
            tiled[_vector(entry, columns)].append(_tiles(number, entry, columns, sizes))
        elif found is not None:
            classes[found].append(number)
        else:
            flat.append((number, 0))
    counts = [entry.base.numel() for entry in entries]
    by_size = sorted(classes, key=lambda c: (-sum(counts[n] // sizes.dense for n in classes[c]), c))
    launches = []
    for place, one in enumerate(by_size):
        numbers = classes[one]
        whole = {n: counts[n] // sizes.dense if place < CLASSES else 0 for n in numbers}
        flat += [(n, whole[n] * sizes.dense) for n in numbers]
        if any(whole.values()):
            launches.append(_dense(one, whole, len(entries[0].parts), sizes))
    for vector, parts in sorted(tiled.items()):
        options = {"ROWS": sizes.rows, "SIZE": sizes.columns, "VECTOR": vector}
        launches.append(Launch("tiles", np.concatenate(parts), options))
    rest = [_blocks(n, first // sizes.flat, -(-counts[n] // sizes.flat)) for n, first in flat]
    if any(map(len, rest)):
        launches.append(Launch("flat", np.concatenate(rest), {"SIZE": sizes.flat}))
    return launches


def _dense(one: _Class, whole: dict[int, int], terms: int, sizes: Sizes) -> Launch:
    options: dict[str, int | bool] = {
        "SIZE": sizes.dense,
        "IN": one.base,
        "CODE": one.out,
        "DITHERED": one.dithered,
        "VALUES": one.values,
        "VALUES_ALIGNED": one.aligned,
        "TERMS": terms if terms <= UNROLLED else -1,
    }
    chunks = np.concatenate([_blocks(number, 0, blocks) for number, blocks in whole.items()])
    return Launch("dense", chunks, options)


def _class(entry: Entry) -> _Class | None:
    """The class that ``entry`` is in, None if it takes the kernel for any."""
    base, out = layout.mode(entry) & 3, layout.mode(entry) >> 2 & 3
    kinds = {layout.kind(part) for part in entry.parts if part is not None}
    addresses = [tensor.data_ptr() for tensor in _tensors(entry)]
    if out not in (base, F32.code) or len(kinds) > 1 or any(a % 16 for a in addresses):
        return None
    kind = kinds.pop() if kinds else base | layout.ALIGNED
    if kind & layout.LOW_RANK:
        return None
    dithered = entry.key is not None and out != F32.code
    return _Class(base, out, dithered, kind & 3, bool(kind & layout.ALIGNED))


def _tile_columns(entry: Entry, sizes: Sizes) -> int:
    """Columns of the entry's low-rank parts if it can be cut in tiles, 0 if not."""
    widths = {part.right.shape[1] for part in entry.parts if isinstance(part, LowRank)}
    if len(widths) != 1:
        return 0
    (columns,) = widths
    count = entry.base.numel()
    fits = sizes.columns <= columns <= _MOST_COLUMNS and count // columns < _MOST_ROWS
    # The words of dither are one tile's, not one element's.
    return columns if fits and (entry.key is None or count <= _STRETCH) else 0


def _vector(entry: Entry, columns: int) -> bool:
    return columns % 8 == 0 and all(tensor.data_ptr() % 16 == 0 for tensor in _tensors(entry))


def _tensors(entry: Entry) -> list[torch.Tensor]:
    found = [entry.base, entry.out]
    for part in entry.parts:
        if isinstance(part, Values):
            found.append(part.tensor)
        elif part is not None:
            found += [part.left, part.right]
    return found


def _blocks(entry: int, first: int, end: int) -> np.ndarray:
    """int32 [blocks, 2]: the entry, and blocks first … end − 1 of it."""
    blocks = np.empty((max(0, end - first), 2), np.int32)
    blocks[:, 0] = entry
    blocks[:, 1] = np.arange(first, end)
    return blocks


def _tiles(number: int, entry: Entry, columns: int, sizes: Sizes) -> np.ndarray:
    """int32 [tiles, 4]: the entry, first row, first column, columns. One strip after the other."""
    down = np.arange(0, entry.base.numel() // columns, sizes.rows)
    across = np.arange(0, columns, sizes.columns)
    tiles = np.empty((len(across), len(down), 4), np.int32)
    tiles[..., 0] = number
    tiles[..., 1] = down
    tiles[..., 2] = across[:, None]
    tiles[..., 3] = columns
    return tiles.reshape(-1, 4)
