"""Input files: the same bytes from the page cache and from the disk, and only of one version."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from avops.disk import source as module
from avops.disk.source import ALIGN, Identity, Source, aligned_memory, open_regular
from avops.errors import CheckpointError

SIZE = (1 << 20) + 1234
DATA = random.Random(0).randbytes(SIZE)


def opened(path: Path) -> Source:
    return Source(path, identity(path))


def identity(path: Path) -> Identity:
    fd = os.open(path, os.O_RDONLY)
    try:
        return Identity.of(fd)
    finally:
        os.close(fd)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "input"
    path.write_bytes(DATA)
    return path


def evict(path: Path) -> None:
    """Let nothing of ``path`` be in the page cache, or skip where that cannot be had."""
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)
    source = opened(path)
    share = source.cached_share()
    source.close()
    if share != 0.0:
        pytest.skip("this system keeps the pages, or cannot tell")


def read(source: Source, offset: int, nbytes: int) -> bytes:
    """Into memory as a worker has it; what is around the blocks at both ends stays as it was."""
    lead = offset % ALIGN
    blocks = -(-(lead + nbytes) // ALIGN) * ALIGN
    memory = memoryview(aligned_memory(2 * ALIGN + blocks))
    memory[:] = b"\xaa" * len(memory)
    source.read(memory, ALIGN + lead, offset, nbytes)
    assert memory[:ALIGN] == b"\xaa" * ALIGN
    assert memory[ALIGN + blocks :] == b"\xaa" * (len(memory) - ALIGN - blocks)
    return bytes(memory[ALIGN + lead : ALIGN + lead + nbytes])


PIECES = [
    (offset, nbytes)
    for offset in (0, 1, 511, 512, ALIGN - 1, ALIGN, ALIGN + 3, 300_001)
    for nbytes in (0, 1, ALIGN, module.DIRECT_FROM - 1, module.DIRECT_FROM, 700_001)
]
PIECES += [(SIZE - nbytes, nbytes) for nbytes in (1, ALIGN, module.DIRECT_FROM, 100_001, SIZE)]


@pytest.mark.parametrize("cached", [True, False], ids=["cached", "direct"])
def test_any_piece(path: Path, cached: bool) -> None:
    for offset, nbytes in PIECES:
        if cached:
            path.read_bytes()
        else:
            evict(path)
        source = opened(path)
        assert source.cached_share() == (1.0 if cached else 0.0)
        assert read(source, offset, nbytes) == DATA[offset : offset + nbytes], (offset, nbytes)
        went_direct = source._direct >= 0
        assert went_direct == (not cached and nbytes >= module.DIRECT_FROM and source._go_direct)
        if went_direct:
            # Reading it has brought nothing into the page cache.
            assert source.cached_share() == 0.0
        source.close()


def test_partly_cached(path: Path) -> None:
    """A region counts as cached only if all samples of it are."""
    evict(path)
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    os.pread(fd, SIZE // 2, 0)
    os.close(fd)
    source = opened(path)
    assert 0 < source.cached_share() < 1
    assert source.cached_fd(0, 1000) is None
    assert read(source, 5, SIZE - 5) == DATA[5:]
    source.close()


def test_two_regions(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is cached is decided for each region; a piece may lie in two."""
    monkeypatch.setattr(module, "_REGION", 1 << 18)
    evict(path)
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    os.pread(fd, 1 << 18, 0)
    os.close(fd)
    source = opened(path)
    assert source.cached_fd(0, 1 << 18) == source._fd
    assert source.cached_fd(0, (1 << 18) + 1) is None
    assert source.cached_fd(1 << 18, 1) is None
    assert read(source, 100_000, 500_000) == DATA[100_000:600_000]
    assert source._direct >= 0
    source.close()


def test_the_last_region_of_a_few_bytes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples lie within the file."""
    monkeypatch.setattr(module, "_REGION", 1 << 20)
    monkeypatch.setattr(module, "_SAMPLES", 8)
    for size in (1 << 20, (1 << 20) + 1, (1 << 20) + 9):
        path.write_bytes(DATA[:size])
        source = opened(path)
        if module.cached_share(source._fd, 0, 1) is None:
            pytest.skip("no cachestat(2) here")
        assert source.cached_fd(0, size) == source._fd
        source.close()


def test_without_cachestat_reads_are_ordinary(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evict(path)
    monkeypatch.setattr(module, "cached_share", lambda *args: None)
    source = opened(path)
    assert source.cached_share() == 1.0
    assert read(source, 3, 500_000) == DATA[3:500_003]
    assert source._direct == -1
    assert not source._go_direct
    assert source.cached_fd(0, 1) == source._fd
    source.close()


def test_into_memory_anywhere(path: Path) -> None:
    source = opened(path)
    buffer = bytearray(1001)
    source.read_all(memoryview(buffer)[1:], 77)
    assert buffer == b"\0" + DATA[77:1077]
    source.close()


# ---- the end of the file


@pytest.mark.parametrize("cached", [True, False], ids=["cached", "direct"])
@pytest.mark.parametrize("nbytes", [1000, 200_000])
def test_behind_the_end(path: Path, cached: bool, nbytes: int) -> None:
    if not cached:
        evict(path)
    source = opened(path)
    with pytest.raises(CheckpointError, match=rf"input: ended at byte {SIZE}, expected {SIZE + 5}"):
        read(source, SIZE - nbytes + 5, nbytes)
    source.close()


@pytest.mark.parametrize("cached", [True, False], ids=["cached", "direct"])
def test_cut_off_meanwhile(path: Path, cached: bool) -> None:
    if not cached:
        evict(path)
    source = opened(path)
    os.truncate(path, 600_000)
    with pytest.raises(CheckpointError, match="ended at byte 600000, expected 700000: the file"):
        read(source, 500_000, 200_000)
    with pytest.raises(CheckpointError, match="changed while it was in use"):
        source.check()
    source.close()


# ---- one version


def test_another_version_is_refused_at_once(path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    here = identity(path)
    for other in (
        Identity(here.device + 1, here.inode, here.size, here.mtime_ns),
        Identity(here.device, here.inode + 1, here.size, here.mtime_ns),
        Identity(here.device, here.inode, here.size + 1, here.mtime_ns),
        Identity(here.device, here.inode, here.size, here.mtime_ns + 1),
    ):
        with pytest.raises(CheckpointError, match=r"input: changed while it was in use, .*again"):
            Source(path, other)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("how", ["append", "overwrite", "touch"])
def test_a_change_is_seen(path: Path, how: str) -> None:
    source = opened(path)
    source.check()
    if how == "append":
        with path.open("ab") as file:
            file.write(b"x")
    elif how == "overwrite":
        with path.open("r+b") as file:
            file.write(b"x")
    else:
        os.utime(path, ns=(0, identity(path).mtime_ns + 1))
    with pytest.raises(CheckpointError, match="changed while it was in use"):
        source.check()
    source.close()


@pytest.mark.parametrize("how", ["replace", "remove"])
def test_a_new_file_of_that_name_is_not_read(path: Path, how: str) -> None:
    """Direct reads open the file by its name, so they have to look which one they got."""
    evict(path)
    source = opened(path)
    if how == "replace":
        other = path.with_name("other")
        other.write_bytes(bytes(SIZE))
        status = path.stat()
        os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
        other.replace(path)
    else:
        path.unlink()
    for offset in (0, 100, 300_000):
        assert read(source, offset, 200_000) == DATA[offset : offset + 200_000]
    assert source._direct == -1
    source.check()
    source.close()


# ---- opening


def test_opening_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nothing: cannot open for reading: No such file"):
        open_regular(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="not a regular file, expected a safetensors file"):
        open_regular(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="not a regular file"):
        open_regular(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="not a regular file"):
        open_regular(Path("/dev/null"))


def test_closing_twice(path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    evict(path)
    source = opened(path)
    read(source, 0, 200_000)
    source.close()
    source.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_memory_is_aligned() -> None:
    import numpy as np

    for nbytes in (0, 1, ALIGN, 3_000_000):
        memory = aligned_memory(nbytes)
        assert len(memory) >= nbytes
        assert np.frombuffer(memory, np.uint8).ctypes.data % ALIGN == 0


def test_what_is_cached_is_decided_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By whichever thread is first: who was told that it is cached may rely on it."""
    source = opened(path)
    if module.cached_share(source._fd, 0, 1) is None:
        pytest.skip("no cachestat(2) here")
    path.read_bytes()
    answers = []

    def share(fd: int, offset: int, nbytes: int) -> float:
        """While this thread asks, another one has asked and has got another answer."""
        if not answers:
            answers.append(1.0)
            assert source.cached_fd(0, 1) == source._fd
            answers.append(0.0)
        return answers[-1]

    monkeypatch.setattr(module, "cached_share", share)
    assert source.cached_fd(0, 1) == source._fd
    assert source.cached_fd(0, 1) == source._fd
    source.close()
