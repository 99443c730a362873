"""The device-side table of combine_many: addresses and kinds as 64-bit integers, and the chunks.

CUDA and Triton read the same rows. A chunk is a range of one entry's elements: one block's work.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from avops.kernels.many.checks import dtype_of
from avops.kernels.many.entries import Entry, LowRank, Values

# Columns of an entry's row. KEY: the 64 bits as they are. MODE: see mode().
BASE, OUT, COUNT, KEY, MODE = range(5)
ENTRY_COLUMNS = 8

# Columns of a part's row; all 0: no part. ADDRESS: of the values, or of left. KIND: see kind().
# RIGHT … SCALE (bits of f32): of low-rank parts only.
ADDRESS, KIND, RIGHT, RANK, COLUMNS, SCALE = range(6)
PART_COLUMNS = 8

DITHER = 1 << 4
ALIGNED, LOW_RANK = 1 << 2, 1 << 3


def mode(entry: Entry) -> int:
    """Dtype codes of base (bits 0–1) and out (bits 2–3), and DITHER."""
    dither = DITHER if entry.key is not None else 0
    return _code(entry.base) | _code(entry.out) << 2 | dither


def kind(part: Values | LowRank) -> int:
    """Dtype code of the values (bits 0–1; F32 for low-rank ones), ALIGNED, LOW_RANK."""
    if isinstance(part, LowRank):
        return LOW_RANK
    return _code(part.tensor) | (ALIGNED if part.aligned else 0)


def entry_rows(entries: Sequence[Entry]) -> np.ndarray:
    """int64 [entries, ENTRY_COLUMNS]."""
    rows = np.zeros((len(entries), ENTRY_COLUMNS), np.uint64)
    for row, entry in zip(rows, entries, strict=True):
        row[BASE], row[OUT] = entry.base.data_ptr(), entry.out.data_ptr()
        row[COUNT], row[KEY], row[MODE] = entry.base.numel(), entry.key or 0, mode(entry)
    return rows.view(np.int64)


def part_rows(entries: Sequence[Entry]) -> np.ndarray:
    """int64 [entries, terms, PART_COLUMNS]."""
    rows = np.zeros((len(entries), len(entries[0].parts), PART_COLUMNS), np.uint64)
    for number, entry in enumerate(entries):
        for row, part in zip(rows[number], entry.parts, strict=True):
            if isinstance(part, LowRank):
                row[ADDRESS], row[RIGHT] = part.left.data_ptr(), part.right.data_ptr()
                row[RANK], row[COLUMNS] = part.right.shape
                row[SCALE] = np.float32(part.scale).view(np.uint32)
            elif part is not None:
                row[ADDRESS] = part.tensor.data_ptr()
            if part is not None:
                row[KIND] = kind(part)
    return rows.view(np.int64)


def chunk_rows(counts: Sequence[int], size: int) -> np.ndarray:
    """int64 [chunks, 2]: entry and first element of each ``size`` elements."""
    number = np.array([-(-count // size) for count in counts], np.int64)
    entry = np.repeat(np.arange(len(number)), number)
    first = np.arange(number.sum()) - np.repeat(np.cumsum(number) - number, number)
    return np.stack([entry, first * size], axis=1).astype(np.int64)


def _code(tensor: object) -> int:
    dtype = dtype_of(tensor)  # type: ignore[arg-type]
    assert dtype is not None
    return dtype.code
