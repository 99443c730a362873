"""The renames of crash-safe publishing, each one step wherever the system has one."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path


def place(staged: Path, path: Path, *, force: bool) -> bool:
    """Rename ``staged`` to ``path``; False, and nothing done, when it exists without ``force``."""
    if force:
        staged.replace(path)
        return True
    try:
        os.link(staged, path)
    except FileExistsError:
        return False
    except OSError:
        # No hard links on this file system: the check and the rename are two steps.
        if path.exists():
            return False
        staged.rename(path)
    return True


def exchange(one: Path, other: Path) -> bool:
    """Swap two directories in one step, if the system can."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    here, swap = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return bool(renameat2(here, os.fsencode(one), here, os.fsencode(other), swap) == 0)


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Keep other avops runs from publishing into ``directory`` at the same moment."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        # Some network file systems cannot lock: two --force runs may then interleave.
        with contextlib.suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def sync_directory(path: Path) -> None:
    """Make renames in the directory ``path`` durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
