"""What is in the page cache, by cachestat(2), against reads and evictions that were really done."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from avops.disk import residency
from avops.disk.residency import cached_share

PAGE = mmap.PAGESIZE
PAGES = 64


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    """A file of 64 pages and a byte, flushed."""
    path = tmp_path / "x"
    path.write_bytes(bytes(PAGES * PAGE + 1))
    fd = os.open(path, os.O_RDWR)
    os.fsync(fd)
    if cached_share(fd, 0, 1) is None:
        os.close(fd)
        pytest.skip("no cachestat(2) here")
    yield fd
    os.close(fd)


def evict(fd: int) -> None:
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    if cached_share(fd, 0, PAGES * PAGE) != 0:
        pytest.skip("this file system keeps its pages")
    # Reads bring in the pages that they read, and no more.
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)


def test_all_and_nothing(fd: int) -> None:
    assert cached_share(fd, 0, PAGES * PAGE + 1) == 1.0
    evict(fd)
    for offset, nbytes in ((0, PAGES * PAGE), (0, 1), (3 * PAGE + 5, 7), (PAGES * PAGE, 1)):
        assert cached_share(fd, offset, nbytes) == 0.0


def test_half(fd: int) -> None:
    evict(fd)
    for page in range(0, PAGES, 2):
        os.pread(fd, 1, page * PAGE)
    assert cached_share(fd, 0, PAGES * PAGE) == 0.5
    for page in range(PAGES):
        assert cached_share(fd, page * PAGE, PAGE) == 1 - page % 2
        assert cached_share(fd, page * PAGE + PAGE - 1, 1) == 1 - page % 2
    # Two pages are touched, one of which is there.
    assert cached_share(fd, PAGE - 1, 2) == 0.5


def test_behind_the_end(fd: int) -> None:
    assert cached_share(fd, 2 * PAGES * PAGE, PAGE) == 0.0
    assert cached_share(fd, 0, 2 * PAGES * PAGE) == (PAGES + 1) / (2 * PAGES)


def test_beyond_2_to_the_32(tmp_path: Path) -> None:
    """Offsets are 64 bits wide: a sparse file of 8 GiB, with one page at 6 GiB in the cache."""
    with (tmp_path / "sparse").open("w+b") as file:
        file.truncate(8 << 30)
        if cached_share(file.fileno(), 0, 1) is None:
            pytest.skip("no cachestat(2) here")
        os.pwrite(file.fileno(), b"x", 6 << 30)
        assert cached_share(file.fileno(), 6 << 30, PAGE) == 1.0
        assert cached_share(file.fileno(), 2 << 30, PAGE) == 0.0
        assert cached_share(file.fileno(), 0, 8 << 30) == 1 / ((8 << 30) // PAGE)


def test_nothing_to_ask_about(fd: int) -> None:
    assert cached_share(fd, 0, 0) is None
    assert cached_share(fd, 0, -1) is None


def test_a_closed_descriptor(fd: int) -> None:
    other = os.dup(fd)
    os.close(other)
    assert cached_share(other, 0, 1) is None


def test_an_older_kernel(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(residency, "_CACHESTAT", 100_000)
    assert cached_share(fd, 0, 1) is None


def test_no_way_to_call_it(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise OSError("no libc")

    monkeypatch.setattr(ctypes, "CDLL", refuse)
    residency._syscall.cache_clear()
    assert cached_share(fd, 0, 1) is None
    residency._syscall.cache_clear()
