"""The journal of a staging directory: which blocks are written, so that a killed run can resume.

One line of JSON per block: file, block number, digest, and what the run counted in it. A line is
written after its block. Nothing is flushed for the journal's sake: a resuming run reads each block
again and takes only those whose digest is the recorded one.
While a run lives it holds a lock on its journal, so no other run takes its directory.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

JOURNAL = "avops-journal"
_VERSION = 1


class Journal:
    """The journal in the directory ``stage`` of a run whose plan is identified by ``plan_id``."""

    def __init__(self, path: Path, fd: int, entries: dict[tuple[int, int], Any]) -> None:
        self._path, self._fd = path, fd
        self.entries = entries

    @classmethod
    def create(cls, stage: Path, plan_id: str) -> Journal:
        """A new journal. Raises OSError."""
        path = stage / JOURNAL
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o666)
        journal = cls(path, fd, {})
        try:
            _lock(fd)
            journal._append({"avops_journal": _VERSION, "plan": plan_id})
        except BaseException:
            journal.close()
            raise
        return journal

    @classmethod
    def resume(cls, stage: Path, plan_id: str) -> Journal | None:
        """The journal that a killed run left, or None: another plan's, in use, or unreadable."""
        path = stage / JOURNAL
        try:
            fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return None
        try:
            if _lock(fd):
                entries = _entries(fd, plan_id)
                if entries is not None:
                    return cls(path, fd, entries)
        except OSError:
            pass  # What cannot be read cannot be resumed.
        os.close(fd)
        return None

    def add(self, file: int, block: int, digest: bytes, counts: Any) -> None:
        """Record that ``block`` of output file number ``file`` is written. Raises OSError."""
        self._append([file, block, digest.hex(), counts])

    def _append(self, value: Any) -> None:
        os.write(self._fd, json.dumps(value, separators=(",", ":")).encode() + b"\n")

    def remove(self) -> None:
        """Delete the journal: the output is complete."""
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()

    def close(self) -> None:
        """Close the journal, which releases the lock."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1


def in_use(stage: Path) -> bool:
    """Whether a living run holds the journal in ``stage``."""
    try:
        fd = os.open(stage / JOURNAL, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        return not _lock(fd)
    finally:
        os.close(fd)


def _lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True  # Some network file systems cannot lock; then two runs may meet.
    return True


def _entries(fd: int, plan_id: str) -> dict[tuple[int, int], Any] | None:
    """(file, block) to [digest, counts]; None when the journal is of another plan."""
    lines = _lines(fd)
    if next(lines, None) != {"avops_journal": _VERSION, "plan": plan_id}:
        return None
    found: dict[tuple[int, int], Any] = {}
    for line in lines:
        if isinstance(line, list) and len(line) == 4:
            found[line[0], line[1]] = line[2:]
    return found


def _lines(fd: int) -> Iterator[Any]:
    """The journal's lines; the last may be torn by the kill, and ends it."""
    data = b""
    while piece := os.pread(fd, 1 << 20, len(data)):
        data += piece
    *whole, torn = data.split(b"\n")
    os.ftruncate(fd, len(data) - len(torn))
    for line in whole:
        try:
            yield json.loads(line)
        except ValueError:
            return
