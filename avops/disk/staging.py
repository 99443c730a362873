"""Crash-safe publishing: an output appears at its path whole, or not at all.

Everything is written into a staging directory beside the target, flushed, then renamed.
A failure or an interrupt removes the staging directory; a kill leaves it behind under a name that
says so, ``.NAME.avops-partial-…``, beside an untouched target. With a journal in it, a later run
can take it up.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

from avops.disk.journal import Journal, in_use
from avops.disk.publish import exchange, locked, place, sync_directory
from avops.disk.staged import StagedFile
from avops.errors import OutputError, WriteError

RECIPE_NAME = "avops_recipe.json"


class Staging:
    """Files that become the output ``target``: a directory, or one file with companions.

    Use as a context manager and call ``commit()`` last; leaving without it removes everything.
    ``force`` replaces an existing file, or a directory that avops wrote. ``inputs`` are files
    and directories that the output may never replace, whatever ``force`` says. companions: names
    of the files that a file output brings along. notes: what the user should know afterwards.

    plan_id: identifies what is to be written, and turns the journal on. resume: take up what a
    killed run of the same plan left, and leave an interrupted run's work for the next one.
    """

    def __init__(
        self,
        target: Path,
        *,
        directory: bool,
        force: bool = False,
        inputs: Iterable[Path] = (),
        companions: Iterable[str] = (),
        plan_id: str | None = None,
        resume: bool = False,
    ) -> None:
        # A link is written through: what it points at is replaced, under the staged file's name.
        self.target, self._name = Path(os.path.realpath(target)), target.name
        self.directory = directory
        self.force = force
        self._inputs = tuple(inputs)
        self._companions = tuple(companions)
        self._plan_id, self._resume = plan_id, resume
        self._journal: Journal | None = None
        self._taken_up = False
        self._files: dict[str, StagedFile] = {}
        self._made: list[Path] = []
        self.notes: list[str] = []
        token = f"{os.getpid()}-{secrets.token_hex(4)}"
        self._stage = self.target.parent / f".{self.target.name}.avops-partial-{token}"

    def check(self, nbytes: int) -> None:
        """Refuse before any work: an output that exists, is an input, or does not fit the disk.

        Raises OutputError.
        """
        self._check_not_input()
        if os.path.lexists(self.target):
            self._check_replaceable()
        for name in self._companions:
            path = self.target.parent / name
            if path.exists() and not self.force and not self._orphaned(path):
                raise OutputError(_exists(path))
        parent = next(p for p in self.target.parents if p.exists())
        if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
            raise OutputError(f"{self.target}: cannot write into {parent}; choose another -o")
        usage = os.statvfs(parent)
        free = usage.f_bavail * usage.f_frsize
        if nbytes > free:
            raise OutputError(
                f"{self.target}: needs {nbytes:,} bytes, but {parent} has {free:,} free; "
                "free some space or choose another -o"
            )

    def __enter__(self) -> Staging:
        if self._resume and self._take_up():
            return self
        missing = [p for p in self.target.parents if not p.exists()]
        try:
            for path in reversed(missing):
                path.mkdir()
                self._made.append(path)
            self._stage.mkdir()
            if self._plan_id is not None:
                self._journal = Journal.create(self._stage, self._plan_id)
        except OSError as error:
            self._discard()
            self._fail("creating the staging directory", error)
        return self

    def _take_up(self) -> bool:
        for stage in reversed(self.leftovers()):
            journal = Journal.resume(stage, self._plan_id or "")
            if journal is not None:
                self._stage, self._journal, self._taken_up = stage, journal, True
                return True
        return False

    @property
    def resumed(self) -> Mapping[tuple[int, int], Any]:
        """What the journal of a killed run holds: (file, block) to [digest, counts]."""
        return {} if self._journal is None else self._journal.entries

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._resume and isinstance(value, KeyboardInterrupt):
            self._close()
        else:
            self._discard()

    def create(self, name: str, size: int) -> StagedFile:
        """Create the file ``name`` of ``size`` bytes, space reserved."""
        path = self._stage / name
        try:
            file = StagedFile(path, size, exists=self._taken_up and path.exists())
        except OSError as error:
            self._fail(f"reserving {size:,} bytes for {name}", error)
        self._files[name] = file
        return file

    def write(self, file: StagedFile, data: bytes | memoryview, offset: int) -> None:
        """Write all of ``data`` at ``offset`` bytes. Raises WriteError."""
        try:
            file.write(data, offset)
        except OSError as error:
            self._fail(f"writing at byte {offset}", error)

    @property
    def journaled(self) -> bool:
        """Whether this run keeps a journal."""
        return self._journal is not None

    def record(self, file: int, block: int, digest: bytes, counts: Any) -> None:
        """Journal that ``block`` of output file number ``file`` is written."""
        if self._journal is not None:
            try:
                self._journal.add(file, block, digest, counts)
            except OSError as error:
                self._fail("writing the journal", error)

    def add(self, name: str, data: bytes) -> None:
        """Add the small file ``name``."""
        file = self.create(name, len(data))
        self.write(file, data, 0)

    def commit(self) -> None:
        """Flush everything and rename it into place; of a file output its companions, too.

        Raises WriteError, or OutputError when something appeared at the target meanwhile.
        """
        try:
            for file in self._files.values():
                file.flush()
            self._close()
            if self._journal is not None:
                self._journal.remove()
            sync_directory(self._stage)
            with locked(self.target.parent):
                if self.directory:
                    self._publish_directory()
                else:
                    self._publish_files()
        except OSError as error:
            # After a failed flush the kernel may have dropped the pages: discard, never retry.
            self._fail("publishing the output", error)
        self._made.clear()
        try:
            sync_directory(self.target.parent)
        except OSError as error:
            raise WriteError(
                f"{self.target}: is in place and whole, but flushing {self.target.parent} failed: "
                f"{error.strerror}; a power cut now could undo the rename; check the disk"
            ) from error

    def _publish_files(self) -> None:
        """Companions first and the target last: who sees the target sees all of it."""
        placed: list[Path] = []
        try:
            for name in (*self._companions, self._name):
                path = self.target if name == self._name else self.target.parent / name
                orphaned = name != self._name and self._orphaned(path)
                if not place(self._stage / name, path, force=self.force or orphaned):
                    raise OutputError(_exists(path))
                placed.append(path)
        except BaseException:
            if not self.force:
                for path in placed:
                    path.unlink()
            raise

    def _publish_directory(self) -> None:
        if not self.force or not self.target.exists():
            try:
                self._stage.rename(self.target)
            except OSError as error:
                if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    raise OutputError(_exists(self.target)) from None
                raise
            return
        old = self._stage.with_name(self._stage.name.replace("-partial-", "-replaced-"))
        if exchange(self._stage, self.target):
            self._stage.rename(old)
        else:
            self.target.rename(old)
            try:
                self._stage.rename(self.target)
            except BaseException:
                old.rename(self.target)
                raise
        shutil.rmtree(old, ignore_errors=True)
        if old.exists():
            self.notes.append(f"the replaced output could not be removed whole: remove {old}")

    def _check_not_input(self) -> None:
        if not self.target.exists():
            return
        for path in self._inputs:
            # Both ways up: a hub snapshot's shards are links out of the directory that is read.
            for start in (Path(os.path.abspath(path)), Path(os.path.realpath(path))):
                for holder in (start, *start.parents):
                    if holder.exists() and os.path.samefile(holder, self.target):
                        raise OutputError(
                            f"{self.target}: is or holds the input {path}, which is never "
                            "overwritten; choose another -o"
                        )

    def _check_replaceable(self) -> None:
        if self.directory and self.target.is_dir():
            strangers = self._strangers()
            if self.force and strangers:
                raise OutputError(
                    f"{self.target}: --force replaces only what avops wrote, and {strangers[0]!r} "
                    f"in it is not listed in its {RECIPE_NAME}; move it away, or choose another -o"
                )
            if not any(self.target.iterdir()):
                return
        elif self.directory or self.target.is_dir():
            kinds = ("a file", "a directory") if self.directory else ("a directory", "a file")
            raise OutputError(
                f"{self.target}: exists and is {kinds[0]}, but the output is {kinds[1]}; "
                "choose another -o"
            )
        if not self.force:
            raise OutputError(_exists(self.target))

    def _orphaned(self, companion: Path) -> bool:
        """Whether a run that was killed between its two renames left ``companion`` alone."""
        return not os.path.lexists(self.target) and self._name in _listed(companion)

    def _strangers(self) -> list[str]:
        """Entries of the target directory that its recipe file does not list."""
        return sorted(set(os.listdir(self.target)) - _listed(self.target / RECIPE_NAME))

    def leftovers(self) -> tuple[Path, ...]:
        """Staging directories that killed runs left beside the target, oldest first."""
        pattern = f".{glob.escape(self.target.name)}.avops-*"
        found = [p for p in self.target.parent.glob(pattern) if p != self._stage and not in_use(p)]
        return tuple(sorted(found, key=lambda path: path.lstat().st_mtime_ns))

    def _close(self) -> None:
        for file in self._files.values():
            with contextlib.suppress(OSError):
                file.close()
        self._files.clear()
        if self._journal is not None:
            self._journal.close()

    def _discard(self) -> None:
        self._close()
        shutil.rmtree(self._stage, ignore_errors=True)
        for path in reversed(self._made):
            with contextlib.suppress(OSError):
                path.rmdir()
        self._made.clear()

    def _fail(self, doing: str, error: OSError) -> NoReturn:
        advice = {
            errno.ENOSPC: "free some space or choose another -o",
            errno.EDQUOT: "raise the quota or choose another -o",
            errno.EFBIG: "the file system or `ulimit -f` limits file sizes; choose another -o",
        }.get(error.errno or 0, "check the disk, then run the command again")
        raise WriteError(
            f"{self.target}: {doing} failed: {error.strerror}; nothing was left behind; {advice}"
        ) from error


def _exists(path: Path) -> str:
    return f"{path}: already exists; choose another -o, or replace it with --force"


def _listed(recipe: Path) -> set[str]:
    """The files of an output by its recipe file, which is one of them; none if it is not ours."""
    try:
        files = json.loads(recipe.read_bytes())["files"]
        return {recipe.name, *(str(name) for name in files)}
    except (OSError, ValueError, KeyError, TypeError):
        return set()
