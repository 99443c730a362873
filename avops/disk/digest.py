"""Digests: they tell whether every byte of a file is still what was written.

The data is cut into blocks of 1 MiB; each block has its XXH3-128 digest (16 bytes, big-endian),
and the digest of the whole is XXH3-128 over the blocks' digests in order, in hexadecimal. So
blocks can be hashed in any order, on any thread, while they are written. A digest finds damage;
it proves nothing against an attacker, who can make two files with one digest.
Source: https://github.com/Cyan4973/xxHash (XXH3, canonical representation).
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeAlias

import xxhash

from avops import env
from avops.disk.reader import read_exactly
from avops.disk.source import open_regular

BLOCK = 1 << 20
DIGEST_SIZE = 16

Bytes: TypeAlias = bytes | bytearray | memoryview


def block_digest(data: Bytes) -> bytes:
    """The digest of one block, 16 bytes. ``data`` has BLOCK bytes; the last block may be shorter.

    The interpreter's lock is released meanwhile.
    """
    return xxhash.xxh3_128_digest(data)


def root_digest(block_digests: Iterable[bytes]) -> str:
    """The digest of the whole, 32 hexadecimal digits, from its blocks' digests in order."""
    root = xxhash.xxh3_128()
    for digest in block_digests:
        root.update(digest)
    return root.hexdigest()


def bytes_digest(data: Bytes) -> str:
    """The digest of ``data``: that of a file with these bytes."""
    view = memoryview(data).cast("B")
    return root_digest(
        block_digest(view[start : start + BLOCK]) for start in range(0, len(view), BLOCK)
    )


def file_digest(path: str | os.PathLike[str]) -> str:
    """The digest of the file ``path``, read once with one block in memory per thread.

    Raises CheckpointError or AvopsError when the file cannot be read, or shrinks meanwhile.
    """
    path = Path(path)
    fd = open_regular(path)
    try:
        size = os.fstat(fd).st_size
        count = -(-size // BLOCK)
        workers = max(1, min(env.threads(), count))
        # Each thread takes every n-th block: together they read the file from front to back.
        with ThreadPoolExecutor(workers, thread_name_prefix="avops") as pool:
            parts = list(
                pool.map(
                    lambda first: _digests(fd, size, range(first, count, workers), str(path)),
                    range(workers),
                )
            )
    finally:
        os.close(fd)
    return root_digest(parts[number % workers][number // workers] for number in range(count))


def _digests(fd: int, size: int, numbers: range, where: str) -> list[bytes]:
    """Digests of the blocks ``numbers`` of the open file of ``size`` bytes."""
    memory = memoryview(bytearray(min(BLOCK, size)))
    found = []
    for number in numbers:
        block = memory[: min(BLOCK, size - number * BLOCK)]
        read_exactly(fd, block, number * BLOCK, where)
        found.append(block_digest(block))
    return found
