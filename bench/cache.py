"""The page cache before a run: inputs all in it, or none of them, and checked."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from avops.disk.residency import cached_share

_READ = 1 << 22


def data_files(directories: Iterable[Path]) -> list[Path]:
    return [file for path in directories for file in sorted(path.glob("*.safetensors"))]


def size(files: Iterable[Path]) -> int:
    return sum(file.stat().st_size for file in files)


def warm(files: Sequence[Path]) -> None:
    """Read everything once. Raises SystemExit when the cache does not hold it."""
    buffer = bytearray(_READ)
    for _ in range(3):
        for file in files:
            fd = os.open(file, os.O_RDONLY)
            at = 0
            while got := os.preadv(fd, [buffer], at):
                at += got
            os.close(fd)
        if (found := share(files)) > 0.99:
            return
    raise SystemExit(
        f"only {found:.0%} of the inputs stay in the page cache: choose a smaller --mib, or --cold"
    )


def evict(files: Sequence[Path]) -> None:
    """Drop everything. Raises SystemExit when some of it stays."""
    for file in files:
        fd = os.open(file, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)
    if (found := share(files)) > 0.001:
        raise SystemExit(f"{found:.1%} of the inputs stay in the page cache: something uses them")


def share(files: Sequence[Path]) -> float:
    """The part of the files' bytes that is in the page cache."""
    cached = 0.0
    for file in files:
        fd, nbytes = os.open(file, os.O_RDONLY), file.stat().st_size
        found = cached_share(fd, 0, nbytes)
        os.close(fd)
        if found is None:
            raise SystemExit("this kernel does not tell what is cached (Linux 6.5 and later do)")
        cached += found * nbytes
    return cached / size(files)


def available() -> int:
    """Bytes of memory that the page cache could take."""
    with open("/proc/meminfo", encoding="ascii") as file:
        lines = dict(line.split(":") for line in file)
    return int(lines["MemAvailable"].split()[0]) << 10
