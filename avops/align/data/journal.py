"""The journal: every answer that was paid for, one JSON line each, a file per stage.

A line is appended with one system call, so that a killed process loses only what was in flight.
Lines are found by the request's key: a run asks for nothing that is already there.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType

from avops.align.data.request import STAGES, Answer, Request
from avops.errors import DataError, OutputError, WriteError

_FIELDS = set(Answer.__dataclass_fields__)


class Journal:
    """The answers in ``directory``; a context manager that keeps other runs out.

    Entering reads all files. torn: bytes at the ends of files that a crash cut off within a line;
    they are removed when writing begins. Reading alone (``write=False``) creates and changes
    nothing.
    """

    def __init__(
        self, directory: Path, stages: Sequence[str] = STAGES, *, write: bool = True
    ) -> None:
        self.directory = directory
        self.stages = tuple(stages)
        self.torn = 0
        self._write = write
        self._answers: dict[str, Answer] = {}
        self._files: dict[str, int] = {}
        self._lock = -1

    def __enter__(self) -> Journal:
        if self._write:
            self._take()
        try:
            for stage in self.stages:
                self._read(stage)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, request: Request) -> Answer | None:
        """The answer to ``request``, if there is one."""
        return self._answers.get(request.key)

    def add(self, request: Request, answer: Answer) -> None:
        """Append the answer to ``request``. Raises WriteError."""
        record = {
            "key": request.key,
            "name": request.name,
            "attempt": request.attempt,
            **asdict(answer),
        }
        # ASCII: an answer may hold halves of surrogate pairs, which UTF-8 cannot.
        line = json.dumps(record).encode("ascii") + b"\n"
        path = self._path(request.stage)
        if request.stage not in self._files:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
            self._files[request.stage] = os.open(path, flags, 0o666)
        file = self._files[request.stage]
        start = os.fstat(file).st_size
        try:
            written = os.write(file, line)
            if written < len(line):
                raise OSError(f"{written} of {len(line)} bytes")
        except OSError as error:
            os.ftruncate(file, start)
            raise WriteError(
                f"{path}: writing failed ({error.strerror or error}); make room and run the same "
                "command again: it goes on from there"
            ) from None
        self._answers[request.key] = answer

    def close(self) -> None:
        """Flush and close the files, and let other runs in."""
        for file in self._files.values():
            os.fsync(file)
            os.close(file)
        self._files.clear()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _path(self, stage: str) -> Path:
        return self.directory / f"{stage}.jsonl"

    def _take(self) -> None:
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
        except OSError as error:
            raise OutputError(
                f"{self.directory}: cannot be made or written: {error.strerror}; "
                "choose another directory"
            ) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.close()
            raise OutputError(
                f"{self.directory}: another run is at work there; wait for its end, "
                "or choose another directory"
            ) from None

    def _read(self, stage: str) -> None:
        path = self._path(stage)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            self.torn += len(data) - whole
            if self._write:
                os.truncate(path, whole)
        for number, line in enumerate(data[:whole].split(b"\n")[:-1], start=1):
            key, answer = _parse(line, f"{path}, line {number}")
            self._answers[key] = answer


def _parse(line: bytes, place: str) -> tuple[str, Answer]:
    try:
        record = json.loads(line)
        key, answer = record["key"], Answer(**{name: record[name] for name in _FIELDS})
        right = isinstance(key, str) and isinstance(answer.text, str)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{place}: not an entry of the journal ({type(error).__name__}: {error}); remove this "
            "line, and its request will be made again"
        ) from None
    if not right:
        raise DataError(f"{place}: got {line[:60]!r}…, expected key and text as texts")
    return key, answer
