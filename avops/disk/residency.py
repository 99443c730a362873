"""Which bytes of a file are in the page cache: cachestat(2), Linux 6.5 and later."""

from __future__ import annotations

import ctypes
import functools
import mmap

# The number is the same on every architecture.
_CACHESTAT = 451


class _Range(ctypes.Structure):
    _fields_ = (("offset", ctypes.c_uint64), ("length", ctypes.c_uint64))


class _Counts(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_uint64)
        for name in ("cached", "dirty", "writeback", "evicted", "recently_evicted")
    )


@functools.cache
def _syscall() -> ctypes._NamedFuncPointer | None:
    try:
        return ctypes.CDLL(None, use_errno=True).syscall
    except (OSError, AttributeError):
        return None


def cached_share(fd: int, offset: int, nbytes: int) -> float | None:
    """The share of the pages of ``nbytes`` bytes at ``offset`` that are in the page cache.

    None where the system cannot tell (an older kernel, a sandbox, a file system without pages).
    """
    call = _syscall()
    if call is None or nbytes <= 0:
        return None
    counts = _Counts()
    wanted = _Range(offset, nbytes)
    if call(_CACHESTAT, fd, ctypes.byref(wanted), ctypes.byref(counts), 0) != 0:
        return None
    pages = (offset + nbytes - 1) // mmap.PAGESIZE - offset // mmap.PAGESIZE + 1
    return min(1.0, float(counts.cached) / pages)
