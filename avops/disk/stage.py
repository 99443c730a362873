"""The staging directory of a run: the output's files, and the journal beside them.

``.NAME.avops-partial-PID-TOKEN/`` holds ``avops-journal``, from its first moment to its last, and
``files/``. So whatever a kill leaves can be recognised, and taken up.
"""

from __future__ import annotations

import contextlib
import glob
import os
import secrets
import shutil
import stat
from pathlib import Path

from avops.disk.journal import JOURNAL, Journal, in_use, is_of, is_void
from avops.disk.staged import StagedFile


class Stage:
    """The staging directory beside ``target`` of a run whose plan is identified by ``plan_id``.

    Methods raise OSError. ``create`` and ``take_up`` want the lock of the parent directory: who
    holds it knows that a staging directory whose journal is not in use is a dead run's.
    """

    def __init__(self, target: Path, plan_id: str) -> None:
        self._target, self._plan_id = target, plan_id
        token = f"{os.getpid()}-{secrets.token_hex(4)}"
        self.path = target.parent / f".{target.name}.avops-partial-{token}"
        self.journal: Journal | None = None
        self._taken_up = False

    @property
    def files(self) -> Path:
        """Where the output's files are."""
        return self.path / "files"

    def create(self) -> None:
        """Make the directory and its journal."""
        self.path.mkdir()
        self.journal = Journal.create(self.path, self._plan_id)
        self.files.mkdir()

    def take_up(self) -> bool:
        """Become what a killed run of the same plan left, the latest; False if there is nothing."""
        for path in reversed(self._siblings()):
            journal = Journal.resume(path, self._plan_id)
            if journal is not None:
                self.path, self.journal, self._taken_up = path, journal, True
                self.files.mkdir(exist_ok=True)
                return True
            _remove_void(path)
        return False

    def held(self) -> int:
        """Bytes on the disk that ``take_up`` would find."""
        for path in reversed(self._siblings()):
            if is_of(path, self._plan_id) and not in_use(path):
                with contextlib.suppress(OSError):
                    return sum(512 * p.lstat().st_blocks for p in (path / "files").iterdir())
        return 0

    def leftovers(self) -> tuple[Path, ...]:
        """Staging directories that killed runs left beside the target, oldest first."""
        return tuple(path for path in self._siblings() if path != self.path and not in_use(path))

    def _siblings(self) -> list[Path]:
        """Staging directories of all runs, oldest first."""
        found = []
        for path in self._target.parent.glob(f".{glob.escape(self._target.name)}.avops-*"):
            # Another run may just have removed its own.
            with contextlib.suppress(OSError):
                status = path.lstat()
                if stat.S_ISDIR(status.st_mode):
                    found.append((status.st_mtime_ns, path))
        return [path for _, path in sorted(found)]

    def open(self, name: str, size: int) -> StagedFile:
        """The file ``name`` of ``size`` bytes, with what a killed run has written there."""
        path = self.files / name
        return StagedFile(path, size, exists=self._taken_up and _may_take_up(path))

    def clear(self, but: frozenset[str]) -> None:
        """Remove files that a killed run left and this one does not write."""
        for path in self.files.iterdir():
            if path.name not in but:
                _remove(path)

    def close(self) -> None:
        """Let go of the journal: the next run may take the directory up."""
        if self.journal is not None:
            self.journal.close()

    def remove(self) -> None:
        """Remove the directory, the journal last: until then a kill leaves what can be taken up."""
        _remove(self.files)
        if self.journal is not None:
            self.journal.remove()
            self.journal.close()
        _remove(self.path)


def _may_take_up(path: Path) -> bool:
    """Whether the file is the killed run's own; what is not is removed.

    A file with a second name has been published, or was the old output's.
    """
    try:
        status = path.lstat()
    except FileNotFoundError:
        return False
    if stat.S_ISREG(status.st_mode) and status.st_nlink == 1:
        return True
    _remove(path)
    return False


def _remove(path: Path) -> None:
    """Remove a file or a directory, as far as possible."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def _remove_void(path: Path) -> None:
    """Remove what is left of a run that was killed before it wrote, or after it removed, all."""
    with contextlib.suppress(OSError):
        if is_void(path):
            (path / JOURNAL).unlink()
    with contextlib.suppress(OSError):
        path.rmdir()
