"""Digests: of files and of bytes, the same on any number of threads, different on any change."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest
import xxhash

from avops.disk import digest
from avops.disk.digest import BLOCK, block_digest, bytes_digest, file_digest, root_digest
from avops.errors import CheckpointError

# Published by the xxHash project for XXH3-128 of no bytes, seed 0.
EMPTY = "99aa06d3014798d86001c324468d497f"


def test_the_rule_in_full() -> None:
    data = bytes(range(256)) * (BLOCK // 128) + b"tail"
    blocks = [data[:BLOCK], data[BLOCK : 2 * BLOCK], data[2 * BLOCK :]]
    assert [len(block) for block in blocks] == [BLOCK, BLOCK, 4]
    digests = [xxhash.xxh3_128(block).digest() for block in blocks]
    assert [block_digest(block) for block in blocks] == digests
    assert root_digest(digests) == xxhash.xxh3_128(b"".join(digests)).hexdigest()
    assert bytes_digest(data) == root_digest(digests)
    assert len(block_digest(data)) == digest.DIGEST_SIZE


def test_known_values() -> None:
    assert root_digest([]) == bytes_digest(b"") == EMPTY
    # A digest that recipes hold must not change from one version to the next.
    assert bytes_digest(b"avops") == "f6dd09219d84859198493a9947c3447f"


@pytest.mark.parametrize("threads", ["1", "2", "3", "9"])
@pytest.mark.parametrize(
    "size", [0, 1, 4095, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, 5 * BLOCK + 7]
)
def test_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, threads: str) -> None:
    monkeypatch.setenv("AVOPS_THREADS", threads)
    data = os.urandom(min(size, 997)) * (size // 997 + 1)
    path = tmp_path / "x"
    path.write_bytes(data[:size])
    assert file_digest(path) == bytes_digest(data[:size])


def test_every_byte_and_the_order_of_blocks_count() -> None:
    data = bytearray(2 * BLOCK + 3)
    whole = bytes_digest(data)
    for place in (0, BLOCK - 1, BLOCK, 2 * BLOCK + 2):
        data[place] = 1
        assert bytes_digest(data) != whole
        data[place] = 0
    assert bytes_digest(data[:-1]) != whole
    one, two = block_digest(b"one"), block_digest(b"two")
    assert root_digest([one, two]) != root_digest([two, one])


def test_any_buffer() -> None:
    data = b"some bytes"
    for form in (bytearray(data), memoryview(data), memoryview(data * 2)[: len(data)]):
        assert bytes_digest(form) == bytes_digest(data)


def test_the_lock_is_released() -> None:
    """Another Python thread runs while a block is hashed: hashing scales over threads."""
    block = bytes(64 * BLOCK)
    done = threading.Event()
    ticks = []

    def tick() -> None:
        while not done.is_set():
            ticks.append(time.perf_counter())

    thread = threading.Thread(target=tick)
    thread.start()
    while not ticks:
        pass
    start = time.perf_counter()
    block_digest(block)
    end = time.perf_counter()
    done.set()
    thread.join()
    # A held lock would show no tick at all between the two readings, but for one at each edge.
    assert sum(start < moment < end for moment in ticks) > 10


def test_unreadable_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match=r"gone: cannot open for reading: No such file"):
        file_digest(tmp_path / "gone")
    with pytest.raises(CheckpointError, match="not a regular file"):
        file_digest(tmp_path)
    path = tmp_path / "shrinks"
    path.write_bytes(bytes(2 * BLOCK))
    real = digest.read_exactly

    def shrink(fd: int, buffer: memoryview, offset: int, where: str) -> None:
        os.truncate(path, BLOCK)
        real(fd, buffer, offset, where)

    monkeypatch.setattr(digest, "read_exactly", shrink)
    with pytest.raises(
        CheckpointError, match=r"shrinks: ended at byte \d+, expected \d+: the file changed"
    ):
        file_digest(path)
