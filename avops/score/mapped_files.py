"""Pages of mapped weight files: given up as soon as a weight has been copied out of them.

They would stay resident until the whole model is loaded, which then takes twice its size.
"""

from __future__ import annotations

import ctypes
import mmap
from pathlib import Path
from typing import TYPE_CHECKING

from avops.errors import MissingExtraError

try:
    import torch
except ModuleNotFoundError as error:
    raise MissingExtraError(error.name or "torch", "score", "loading a model") from error

if TYPE_CHECKING:
    from collections.abc import Sequence

COPIED = 1 << 22
"""Bytes of a weight that are copied before their pages are given up."""


def mapped_files() -> list[tuple[int, int]]:
    """(begin, end) of the addresses where this process maps files; none where nothing tells."""
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        # Addresses, permissions, offset, device, inode, path.
        words = line.split(maxsplit=5)
        if len(words) == 6 and words[5].startswith("/"):
            begin, _, end = words[0].partition("-")
            found.append((int(begin, 16), int(end, 16)))
    return found


def copy_out(
    old: torch.Tensor, mapped: Sequence[tuple[int, int]], dtype: torch.dtype | None = None
) -> torch.Tensor:
    """A copy in memory of its own; what lies in one of ``mapped`` is given up piece by piece.

    dtype: what it is converted to; None for its own.
    """
    new = torch.empty_like(old, dtype=dtype)
    if not (old.is_contiguous() and new.is_contiguous()):
        return new.copy_(old)
    start, step = old.data_ptr(), COPIED // old.element_size()
    pieces = (torch.split(tensor.view(-1), step) for tensor in (old, new))
    for source, copied in zip(*pieces, strict=True):
        copied.copy_(source)
        unmap_pages(start, source.data_ptr() + source.nbytes - start, mapped)
    return new


def unmap_pages(address: int, nbytes: int, mapped: Sequence[tuple[int, int]]) -> None:
    """Give up the whole pages of ``nbytes`` bytes at ``address``, if they lie in one of ``mapped``.

    The file's bytes come back when they are read again; what was written there would be lost.
    """
    first = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
    last = (address + nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if first < last and any(begin <= first and last <= end for begin, end in mapped):
        madvise = ctypes.CDLL(None).madvise
        madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        madvise(first, last - first, mmap.MADV_DONTNEED)
