"""Files being written: the same bytes in any order, past the page cache and through it."""

from __future__ import annotations

import errno
import os
import random
import threading
from pathlib import Path
from typing import Any

import pytest

from avops.disk import staged
from avops.disk.residency import cached_share
from avops.disk.source import ALIGN, aligned_memory
from avops.disk.staged import StagedFile

SIZE = 5 * ALIGN + 123


@pytest.fixture(params=[True, False], ids=["direct", "cached"])
def direct(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether files go past the page cache, whatever their size."""
    monkeypatch.setattr(staged, "_DIRECT_FROM", 1 if request.param else 1 << 60)
    return bool(request.param)


def page_aligned(data: bytes) -> memoryview:
    memory = memoryview(aligned_memory(len(data)))
    memory[: len(data)] = data
    return memory[: len(data)]


DATA = random.Random(0).randbytes(SIZE)


def test_blocks_in_any_order(tmp_path: Path, direct: bool) -> None:
    blocks = list(range(0, SIZE, ALIGN))
    for seed in range(5):
        file = StagedFile(tmp_path / f"{seed}", SIZE)
        random.Random(seed).shuffle(blocks)
        for start in blocks:
            file.write(page_aligned(DATA[start : start + ALIGN]), start)
        assert file.read(SIZE + 1, 0) == DATA
        assert file.read(100, SIZE - 7) == DATA[-7:]
        file.flush()
        file.close()
        assert (tmp_path / f"{seed}").read_bytes() == DATA


@pytest.mark.parametrize("start", [0, 1, 511, 512, ALIGN - 1, ALIGN, ALIGN + 1, 2 * ALIGN])
@pytest.mark.parametrize(
    "nbytes", [0, 1, 511, 512, ALIGN - 1, ALIGN, ALIGN + 1, 3 * ALIGN, 3 * ALIGN + 122]
)
@pytest.mark.parametrize("lead", [0, 1, 512])
def test_any_piece(tmp_path: Path, direct: bool, start: int, nbytes: int, lead: int) -> None:
    """Memory at any address, too: the system refuses what is not aligned."""
    file = StagedFile(tmp_path / "x", SIZE)
    memory = page_aligned(bytes(lead) + DATA)[lead:]
    file.write(memory[:nbytes], start)
    expected = bytearray(SIZE)
    expected[start : start + nbytes] = DATA[:nbytes]
    assert file.read(2 * SIZE, 0) == expected
    # What refused a piece does not lose the next one.
    file.write(page_aligned(DATA), 0)
    file.close()
    assert (tmp_path / "x").read_bytes() == DATA


def test_direct_writes_leave_nothing_in_the_page_cache(tmp_path: Path, direct: bool) -> None:
    file = StagedFile(tmp_path / "x", 64 * ALIGN)
    if direct and not file._go_direct:
        pytest.skip("this file system has no direct writes")
    file.write(page_aligned(bytes(64 * ALIGN)), 0)
    share = cached_share(file._fd, 0, 64 * ALIGN)
    if share is None:
        pytest.skip("no cachestat(2) here")
    assert share == (0.0 if direct else 1.0)
    file.close()


def test_large_files_go_past_the_cache_and_small_ones_through_it(tmp_path: Path) -> None:
    sizes = {staged._DIRECT_FROM - 1: False, staged._DIRECT_FROM: True}
    for size, direct in sizes.items():
        file = StagedFile(tmp_path / f"{size}", size)
        assert (file._direct >= 0) in (direct, False)
        file.close()


def test_threads(tmp_path: Path, direct: bool) -> None:
    count, block = 32, 2 * ALIGN
    file = StagedFile(tmp_path / "x", count * block)

    def write(first: int) -> None:
        for number in range(first, count, 4):
            file.write(page_aligned(bytes([number]) * block), number * block)

    threads = [threading.Thread(target=write, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    file.close()
    expected = b"".join(bytes([number]) * block for number in range(count))
    assert (tmp_path / "x").read_bytes() == expected


def test_space_is_reserved(tmp_path: Path) -> None:
    file = StagedFile(tmp_path / "x", 1 << 20)
    assert os.stat(tmp_path / "x").st_size == 1 << 20
    assert os.stat(tmp_path / "x").st_blocks * 512 >= 1 << 20
    assert file.read(1 << 20, 0) == bytes(1 << 20)
    file.close()


def test_an_empty_file(tmp_path: Path) -> None:
    file = StagedFile(tmp_path / "x", 0)
    file.write(b"", 0)
    file.flush()
    file.close()
    assert (tmp_path / "x").read_bytes() == b""


def test_opened_again(tmp_path: Path, direct: bool) -> None:
    """Longer or shorter than it was; what is there stays."""
    for size in (SIZE, SIZE - 1000, SIZE + 1000):
        (tmp_path / "x").write_bytes(DATA)
        file = StagedFile(tmp_path / "x", size, exists=True)
        assert file.read(2 * SIZE, 0) == DATA[:size] + bytes(max(0, size - SIZE))
        file.write(b"new", 5)
        file.close()
        assert (tmp_path / "x").read_bytes()[:10] == DATA[:5] + b"new" + DATA[8:10]


def test_an_existing_file_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"theirs")
    with pytest.raises(FileExistsError):
        StagedFile(tmp_path / "x", 10)
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    with pytest.raises(FileExistsError):
        StagedFile(tmp_path / "link", 10)
    assert (tmp_path / "x").read_bytes() == b"theirs"
    assert not (tmp_path / "nothing").exists()


def test_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"theirs")
    (tmp_path / "link").symlink_to(tmp_path / "x")
    with pytest.raises(OSError, match="symbolic links"):
        StagedFile(tmp_path / "link", 3, exists=True)
    assert (tmp_path / "x").read_bytes() == b"theirs"


def test_what_does_not_fit_raises(tmp_path: Path) -> None:
    """And leaves no descriptor open."""
    before = len(os.listdir("/proc/self/fd"))
    for number in range(3):
        with pytest.raises(OSError, match=r"File too large|No space left"):
            StagedFile(tmp_path / f"{number}", 1 << 62)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_write_that_fails(tmp_path: Path, direct: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a refusal of direct writes is answered by an ordinary one."""
    file = StagedFile(tmp_path / "x", SIZE)

    def fail(*args: Any) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "pwrite", fail)
    with pytest.raises(OSError, match="Input/output error"):
        file.write(page_aligned(DATA), 0)
    monkeypatch.undo()
    file.close()


def test_closing_twice(tmp_path: Path, direct: bool) -> None:
    file = StagedFile(tmp_path / "x", SIZE)
    file.close()
    file.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        file.write(b"x", 0)
