"""Which kernel of csrc/combine.cu serves which entry, in which chunks: decided once, as data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from avops.dtypes import BF16, F16, F32, DType
from avops.kernels.many import layout
from avops.kernels.many.checks import dtype_of
from avops.kernels.many.entries import Entry, LowRank, Values

if TYPE_CHECKING:
    import torch

# Columns of an entry's row that only the CUDA kernels read. HEAD: elements before the first whole
# vector. WIDTH: columns of the low-rank parts.
HEAD, WIDTH = 5, 6

# Threads of a block, by kernel. The order is that of AVOPS_KERNEL in the source.
KERNELS = {
    "bf16_bf16_4": 128,
    "bf16_bf16_8": 256,
    "bf16_bf16_dither_4": 128,
    "bf16_bf16_dither_8": 256,
    "bf16_f32_4": 128,
    "bf16_f32_8": 256,
    "f16_f16_4": 128,
    "f16_f16_8": 256,
    "f32_f32_4": 128,
    "f32_f32_8": 256,
    "mixed": 256,
    "elements": 256,
    "tiles": 128,
}

# Elements of a chunk: LARGE ones cost less, SMALL ones balance better. Large where that makes MANY
# blocks: six for each place of a large GPU, and most small tensors are a block each.
LARGE, SMALL, MANY = 32768, 8192, 4096

# A block's tile of a low-rank entry, and what its 32-bit offsets reach.
TILE_ROWS, TILE_COLUMNS = 32, 128
REACH = 1 << 28

_NAMES = {BF16: "bf16", F16: "f16", F32: "f32"}
_UNIFORM = {(BF16, BF16), (BF16, F32), (F16, F16), (F32, F32)}


@dataclass(frozen=True)
class Launch:
    """One grid. chunks: int64 [blocks, 2], an entry and its first element or number of a tile."""

    kernel: str
    chunks: np.ndarray
    size: int

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return KERNELS[self.kernel]


@dataclass(frozen=True)
class Plan:
    """The table's rows, and the launches that together write every out."""

    entries: np.ndarray
    parts: np.ndarray
    launches: tuple[Launch, ...]


def plan(entries: Sequence[Entry], *, size: int | None = None) -> Plan:
    """The plan of ``entries``. size: elements of a chunk, a multiple of 8; None: what suits."""
    rows = layout.entry_rows(entries)
    counts = rows[:, layout.COUNT]
    chosen = np.empty(len(entries), object)
    for number, entry in enumerate(entries):
        chosen[number], rows[number, HEAD] = kernel_of(entry)
        rows[number, WIDTH] = _width(entry) or 0
    launches = []
    for kernel in KERNELS:
        here = np.where(chosen == kernel, counts, 0)
        if not here.any():
            continue
        if kernel == "tiles":
            tiles = _tiles(here, rows[:, WIDTH])
            launches.append(Launch(kernel, layout.chunk_rows(tiles.tolist(), 1), 1))
            continue
        step = size or (LARGE if int((-(-here // LARGE)).sum()) >= MANY else SMALL)
        launches.append(Launch(kernel, layout.chunk_rows(here.tolist(), step), step))
    return Plan(rows, layout.part_rows(entries), tuple(launches))


def kernel_of(entry: Entry) -> tuple[str, int]:
    """The fastest kernel that serves ``entry``, and its elements before the first whole vector."""
    stored = [part.tensor for part in entry.parts if isinstance(part, Values)]
    if len(stored) < sum(part is not None for part in entry.parts):
        return ("tiles" if _width(entry) else "elements"), 0
    tensors = [entry.base, entry.out, *stored]
    base, out = dtype_of(entry.base), dtype_of(entry.out)
    kinds = {dtype_of(tensor) for tensor in stored} or {base}
    if base is not None and base == out and len(kinds) == 1 and len(entry.parts) <= 8:
        (kind,) = kinds
        dither = entry.key is not None and base != F32
        head = _head(tensors, 4 if F32 in (base, kind) else 8)
        if head is not None and _has_uniform(base, kind, dither):
            middle = "_dither" if dither else ""
            most = 4 if len(entry.parts) <= 4 else 8
            return f"{_NAMES[base]}_{_NAMES[kind]}{middle}_{most}", head  # type: ignore[index]
    head = _head(tensors, 4)
    return ("elements", 0) if head is None else ("mixed", head)


def _has_uniform(base: DType, kind: DType | None, dither: bool) -> bool:
    return (base, kind) in _UNIFORM and (not dither or (base, kind) == (BF16, BF16))


def _head(tensors: Sequence[torch.Tensor], width: int) -> int | None:
    """Elements before ``width`` at a time are aligned in all tensors at once; None: never."""
    places = [(tensor.data_ptr(), tensor.element_size()) for tensor in tensors]
    for head in range(width):
        if all((start + head * size) % (width * size) == 0 for start, size in places):
            return head
    return None


def _width(entry: Entry) -> int | None:
    """The columns of all low-rank parts, if they have one number of them, within reach."""
    parts = [part for part in entry.parts if isinstance(part, LowRank)]
    shapes = {(part.left.shape[0], part.right.shape[1]) for part in parts}
    if len(shapes) != 1 or not entry.base.numel():
        return None
    ((rows, columns),) = shapes
    ranks = [part.left.shape[1] for part in parts]
    return columns if max(rows, columns, *ranks) < REACH else None


def _tiles(counts: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """How many tiles each entry has."""
    columns = np.maximum(widths, 1)
    tiles: np.ndarray = -(-(counts // columns) // TILE_ROWS) * -(-columns // TILE_COLUMNS)
    return tiles
