"""Crash-safe publishing: an output appears at its path whole, or not at all.

Everything is written into a staging directory beside the target, flushed, then renamed.
A failure or an interrupt removes the staging directory; a kill leaves it behind under a name that
says so, ``.NAME.avops-partial-…``, beside an untouched target. A later run of the same plan can
take it up, by its journal.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

from avops.disk.publish import exchange, locked, place, sync_directory
from avops.disk.stage import Stage
from avops.disk.staged import StagedFile
from avops.errors import OutputError, WriteError

RECIPE_NAME = "avops_recipe.json"


class Staging:
    """Files that become the output ``target``: a directory, or one file with companions.

    Use as a context manager and call ``commit()`` last; leaving without it removes everything.
    ``force`` replaces an existing file, or a directory that avops wrote. ``inputs`` are files
    and directories that the output may never replace, whatever ``force`` says. companions: names
    of the files that a file output brings along. notes: what the user should know afterwards.

    plan_id: identifies what is to be written; journaled says whether there is one. resume: take
    up what a killed run of the same plan left, and leave an interrupted run's work for the next.
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
        self._resume = resume and plan_id is not None
        self.journaled = plan_id is not None
        self._stage = Stage(self.target, plan_id or "")
        self._files: dict[str, StagedFile] = {}
        self._made: list[Path] = []
        self._flushed: frozenset[str] = frozenset()
        self._own: tuple[int, int] | None = None
        self.notes: list[str] = []

    def check(self, nbytes: int) -> None:
        """Refuse before any work: an output that exists, is an input, or does not fit the disk.

        Raises OutputError.
        """
        self._check_length()
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
        check_space([self], nbytes)

    def _check_length(self) -> None:
        """Refuse names that the file system cannot hold, which the staged one or companions have.

        The longest of them is the name under which a replaced output is set aside.
        """
        # Not Path.exists, which raises for a name that the file system cannot hold.
        holder = next(path for path in self.target.parents if os.path.exists(path))
        most = os.pathconf(holder, "PC_NAME_MAX")
        staged = self._stage.path.name.replace("-partial-", "-replaced-")
        own = len(os.fsencode(self.target.name))
        longest = max(len(os.fsencode(name)) for name in (staged, *self._companions))
        if longest > most:
            raise OutputError(
                f"{self.target}: its name has {own} bytes, and files beside it have longer ones, "
                f"expected at most {max(0, own - longest + most)}; choose a shorter -o"
            )
        for part in self.target.parts:
            if len(os.fsencode(part)) > most:
                raise OutputError(
                    f"{self.target}: a directory's name has {len(os.fsencode(part))} bytes, "
                    f"expected at most {most}; choose a shorter -o"
                )

    @property
    def holder(self) -> Path:
        """The nearest directory above the target that exists."""
        return next(p for p in self.target.parents if p.exists())

    @property
    def held(self) -> int:
        """Bytes that a killed run's work, which will be taken up, has on the disk already."""
        return self._stage.held() if self._resume else 0

    def __enter__(self) -> Staging:
        try:
            self._make_parents()
            with locked(self.target.parent):
                if not (self._resume and self._stage.take_up()):
                    self._stage.create()
        except BaseException as error:
            self._leave(error)
            if isinstance(error, OSError):
                self._fail("creating the staging directory", error)
            raise
        return self

    def tidy(self) -> None:
        """Remove what a killed run of this plan left beside an output that is finished."""
        with contextlib.suppress(OSError), locked(self.target.parent):
            if self._stage.take_up():
                self._stage.remove()

    def _make_parents(self) -> None:
        for path in reversed([p for p in self.target.parents if not p.exists()]):
            try:
                path.mkdir()
            except FileExistsError:
                continue  # Another run was faster.
            self._made.append(path)

    @property
    def resumed(self) -> Mapping[tuple[int, int], Any]:
        """What the journal of a killed run holds: (file, block) to [digest, counts]."""
        return {} if self._stage.journal is None else self._stage.journal.entries

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._leave(value)

    def _leave(self, error: BaseException | None) -> None:
        """Remove everything, but for the work of an interrupted run that can be resumed."""
        self._close()
        if self._resume and isinstance(error, KeyboardInterrupt) and not self._is_published():
            self._stage.close()
            return
        self._stage.remove()
        for path in reversed(self._made):
            with contextlib.suppress(OSError):
                path.rmdir()
        self._made.clear()

    def create(self, name: str, size: int) -> StagedFile:
        """Create the file ``name`` of ``size`` bytes, space reserved."""
        try:
            file = self._stage.open(name, size)
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

    def record(self, file: int, block: int, digest: bytes, counts: Any) -> None:
        """Journal that ``block`` of output file number ``file`` is written."""
        if self.journaled and self._stage.journal is not None:
            try:
                self._stage.journal.add(file, block, digest, counts)
            except OSError as error:
                self._fail("writing the journal", error)

    def add(self, name: str, data: bytes) -> None:
        """Add the small file ``name``."""
        file = self.create(name, len(data))
        self.write(file, data, 0)

    def flush(self) -> None:
        """Put everything on the disk. Raises WriteError."""
        names = frozenset(self._files)
        try:
            for file in self._files.values():
                file.flush()
            self._stage.clear(names)
            self._close()
            sync_directory(self._stage.files)
        except OSError as error:
            # After a failed flush the kernel may have dropped the pages: discard, never retry.
            self._fail("flushing the output", error)
        self._flushed = names
        self._own = _inode(self._stage.files if self.directory else self._stage.files / self._name)

    def _is_published(self) -> bool:
        """Whether the target is this run's. An interrupt may come right after the rename."""
        return self._own is not None and _inode(self.target) == self._own

    def commit(self) -> None:
        """Flush everything and rename it into place; of a file output its companions, too.

        Raises WriteError, or OutputError when something appeared at the target meanwhile.
        """
        if not self._flushed:
            self.flush()
        try:
            with locked(self.target.parent):
                if self.directory:
                    self._publish_directory()
                else:
                    self._publish_files()
        except OSError as error:
            self._fail("publishing the output", error)
        parents = {self.target.parent, *(path.parent for path in self._made)}
        self._made.clear()
        try:
            for parent in parents:
                sync_directory(parent)
        except OSError as error:
            raise WriteError(
                f"{self.target}: is in place and whole, but flushing {parent} failed: "
                f"{error.strerror}; a power cut now could undo the rename; check the disk"
            ) from error

    def _publish_files(self) -> None:
        """Companions first and the target last: who sees the target sees all of it."""
        paths = {name: self.target.parent / name for name in self._companions}
        paths[self._name] = self.target
        try:
            for name, path in paths.items():
                orphaned = name != self._name and self._orphaned(path)
                if not place(self._stage.files / name, path, force=self.force or orphaned):
                    raise OutputError(_exists(path))
        except BaseException:
            if not self.force and not self._is_published():
                for name, path in paths.items():
                    if self._is_mine(name, path):
                        path.unlink()
            raise

    def _is_mine(self, name: str, path: Path) -> bool:
        """Whether this run's file ``name`` is at ``path``, by a link or by a rename."""
        staged = self._stage.files / name
        if not os.path.lexists(path):
            return False
        return os.path.samefile(staged, path) if staged.exists() else name in self._flushed

    def _publish_directory(self) -> None:
        files = self._stage.files
        if os.path.lexists(self.target):
            # Once more: the user may have put files there meanwhile.
            self._check_replaceable()
        if not self.force or not self.target.exists():
            try:
                files.rename(self.target)
            except OSError as error:
                if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    raise OutputError(_exists(self.target)) from None
                raise
            return
        old = self._stage.path
        if not exchange(files, self.target):
            # Beside the staging directory: a kill between the two renames must not lose it.
            old = old.with_name(old.name.replace("-partial-", "-replaced-"))
            try:
                self.target.rename(old)
                files.rename(self.target)
            except BaseException:
                if old.exists() and not self.target.exists():
                    old.rename(self.target)
                raise
        held = files if old == self._stage.path else old
        shutil.rmtree(held, ignore_errors=True)
        if held.exists():
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
        return self._stage.leftovers()

    def _close(self) -> None:
        for file in self._files.values():
            with contextlib.suppress(OSError):
                file.close()
        self._files.clear()

    def _fail(self, doing: str, error: OSError) -> NoReturn:
        advice = {
            errno.ENOSPC: "free some space or choose another -o",
            errno.EDQUOT: "raise the quota or choose another -o",
            errno.EMFILE: "raise `ulimit -n`, or write fewer outputs at once",
            errno.ENFILE: "too many files are open on this machine",
            errno.ENAMETOOLONG: "choose a shorter -o",
            errno.EFBIG: "the file system or `ulimit -f` limits file sizes; choose another -o",
        }.get(error.errno or 0, "check the disk, then run the command again")
        raise WriteError(
            f"{self.target}: {doing} failed: {error.strerror}; nothing was left behind; {advice}"
        ) from error


def check_space(stagings: Sequence[Staging], nbytes: int) -> None:
    """Refuse outputs of ``nbytes`` bytes each that do not all fit on their disks.

    Raises OutputError.
    """
    disks: dict[int, list[Staging]] = {}
    for staging in stagings:
        disks.setdefault(staging.holder.stat().st_dev, []).append(staging)
    for there in disks.values():
        needed = sum(nbytes - staging.held for staging in there)
        usage = os.statvfs(there[0].holder)
        free = usage.f_bavail * usage.f_frsize
        if needed > free:
            raise OutputError(
                f"{there[0].target}: needs {needed:,} bytes"
                f"{f' with {len(there) - 1} more outputs' if len(there) > 1 else ''}, but "
                f"{there[0].holder} has {free:,} free; free some space or choose another -o"
            )


def _inode(path: Path) -> tuple[int, int] | None:
    """Which file or directory is at ``path``; None when there is none."""
    try:
        status = path.lstat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _exists(path: Path) -> str:
    return f"{path}: already exists; choose another -o, or replace it with --force"


def _listed(recipe: Path) -> set[str]:
    """The files of an output by its recipe file, which is one of them; none if it is not ours."""
    try:
        files = json.loads(recipe.read_bytes())["files"]
        return {recipe.name, *(str(name) for name in files)}
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        return set()
