"""The heap: what is freed between what lasts stays resident until it is given back."""

from __future__ import annotations

import ctypes
import platform
from pathlib import Path

import pytest

from avops.score import heap
from avops.score.heap import trim_heap

BLOCK, COUNT = 1 << 15, 2048  # 64 MiB, of blocks too small for a mapping of their own


def resident() -> int:
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Rss:"):
            return int(line.split()[1]) << 10
    raise AssertionError("no Rss")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's heap is given back")
def test_free_blocks_leave_memory() -> None:
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    libc.malloc.argtypes = (ctypes.c_size_t,)
    libc.free.argtypes = (ctypes.c_void_p,)
    trim_heap()
    blocks = [libc.malloc(BLOCK) for _ in range(COUNT)]
    for block in blocks:
        ctypes.memset(block, 1, BLOCK)
    for block in blocks[:-1]:  # the last one keeps the top of the heap where it is
        libc.free(block)
    full = resident()
    trim_heap()
    # Half of what was freed: the rest is for whatever else the process does meanwhile.
    assert resident() < full - BLOCK * COUNT // 2
    assert ctypes.string_at(blocks[-1], BLOCK) == b"\1" * BLOCK
    libc.free(blocks[-1])


def test_other_c_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(name: None) -> object:
        assert name is None
        return object()

    monkeypatch.setattr(heap.ctypes, "CDLL", nothing)
    trim_heap()
