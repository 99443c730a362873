"""The run directory: every measurement of a study, kept as soon as it is made.

``study.sqlite`` (WAL, one writer, every transaction flushed) holds what was measured, what a
strategy asked for, and notes. Rows are only ever added. A kill at any moment loses what was in
flight, and nothing else.

Points are keyed by whole steps of each axis, so that a wider range later finds them again.
"""

from __future__ import annotations

import json
import sqlite3
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from avops.errors import AvopsError, DataError, OutputError
from avops.search.identity import Identity
from avops.search.lock import WriterLock
from avops.search.space import Point
from avops.search.store_file import (
    FILE,
    check_directory,
    check_file,
    connect,
    create,
    damaged,
    is_new,
    refusals,
    set_durable,
)
from avops.search.strategies.strategy import Told
from avops.search.study import HOLDOUT, SEARCH, Study

if TYPE_CHECKING:
    from os import PathLike

    from numpy.typing import NDArray

    from avops.search.racing import Out

OUT = "out"
"""The kind of note that says why a point was measured on some of its items only."""
BROKEN = "broken"
"""The kind of note that says what is not finite at a point, which has no scores therefore."""


@dataclass(frozen=True, eq=False)
class Result:
    """One measurement.

    number: its place in the order of arrival, 0 before it is in a store. split: ``search``,
    ``holdout``, or ``baseline:`` and a name. scores: f32 [outputs of the split's board]. seconds:
    for setting λ and scoring. worker: who measured it, and on what. reason: why it was asked for.
    added: when, seconds since 1970.
    """

    point: Point
    split: str
    scores: NDArray[np.float32]
    seconds: float = 0.0
    worker: str = ""
    reason: str = ""
    number: int = 0
    added: float = 0.0


@dataclass(frozen=True)
class Batch:
    """Points that a strategy asked for at once, with a reason for each. note: its remark.

    against: the incumbent that they race; None where they do not.
    """

    points: tuple[Point, ...]
    reasons: tuple[str, ...] = ()
    note: str = ""
    against: Point | None = None
    number: int = field(default=0, compare=False)


@dataclass(frozen=True)
class Note:
    """An event: what kind, what of it, when (seconds since 1970)."""

    kind: str
    value: dict[str, Any]
    number: int = 0
    added: float = 0.0


class Store:
    """One run directory. ``open`` it to add to it, ``read`` it to look.

    study: the latest one. identity: what decides the measurements. since: the number of the last
    result that was there when this study began.
    """

    def __init__(
        self, directory: Path, connection: sqlite3.Connection, lock: WriterLock | None
    ) -> None:
        self.directory = directory
        self._db = connection
        self._lock = lock
        self.identity = Identity.from_json(self._meta("identity"), str(directory))
        # An identity alone is no study; the row is made in the same transaction.
        number, since, text = self._one("SELECT number, since, study FROM studies ORDER BY number")
        self.number, self.since = int(number), int(since)
        self.study = Study.from_json(text, str(directory))

    @classmethod
    def open(cls, directory: str | PathLike[str], study: Study, identity: Identity) -> Store:
        """The run directory for writing: a new one, or one of the same identity.

        Raises OutputError for a directory of another study (saying what differs), of other files,
        or that another process writes; DataError for a damaged one.
        """
        directory = Path(directory)
        path = directory / FILE
        check_directory(directory)
        lock = WriterLock.take(directory)
        connection = None
        try:
            with refusals(path):
                connection = connect(path)
                if new := is_new(connection):
                    set_durable(connection)
                    create(connection, study, identity)
                check_file(connection, path)
                if not new:
                    set_durable(connection)
            kept = cls(directory, connection, lock)
            kept._take_up(study, identity)
        except BaseException:
            if connection is not None:
                connection.close()
            lock.release()
            raise
        return kept

    @classmethod
    def read(cls, directory: str | PathLike[str]) -> Store:
        """The run directory for reading, also while another process writes it.

        Raises DataError where there is none, or a damaged one.
        """
        directory = Path(directory)
        path = directory / FILE
        if not path.is_file():
            raise DataError(
                f"{directory}: no {FILE} in it, expected a run directory of `avops search`; "
                "check the path"
            )
        connection = None
        try:
            with refusals(path):
                connection = connect(path, write=False)
                if is_new(connection):
                    raise DataError(f"{path}: nothing in it yet; look again when the search runs")
                check_file(connection, path)
            return cls(directory, connection, None)
        except BaseException:
            if connection is not None:
                connection.close()
            raise

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file, and let others write it."""
        self._db.close()
        if self._lock is not None:
            self._lock.release()

    def add(self, result: Result) -> Result:
        """Keep ``result``: on the disk when this returns. Returns it with its number.

        Raises DataError for scores of another length, or for a point that has some.
        """
        board = self.study.board_of(result.split)
        scores = np.ascontiguousarray(result.scores, "<f4")
        where = f"{self.directory}: {result.split} at {result.point}"
        if scores.shape != (board.outputs,):
            raise DataError(
                f"{where}: scores of shape {list(scores.shape)}, expected [{board.outputs}]; "
                "measure the same items"
            )
        if not np.isfinite(scores).all():
            raise DataError(f"{where}: scores that are not finite, which are never kept")
        blob, added = scores.tobytes(), time.time()
        row = (
            result.split,
            _key(result.point),
            blob,
            zlib.crc32(blob),
            result.seconds,
            result.worker,
            result.reason,
            added,
        )
        try:
            number = self._write(
                "INSERT INTO results (split, point, scores, crc, seconds, worker, reason, added) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                row,
            )
        except sqlite3.IntegrityError:
            raise DataError(f"{where}: it has scores already, and they are kept") from None
        return replace(result, scores=scores, number=number, added=added)

    def results(self, split: str = SEARCH) -> list[Result]:
        """What was measured of ``split``, in the order of arrival. Raises DataError if damaged."""
        return [self._result(row) for row in self._rows("WHERE split = ? ORDER BY number", split)]

    def find(self, point: Point, split: str = SEARCH) -> Result | None:
        """The result at ``point``; None where it was not measured."""
        found = [*self._rows("WHERE split = ? AND point = ?", split, _key(point))]
        return self._result(found[0]) if found else None

    def points(self, split: str = SEARCH) -> set[Point]:
        """Where ``split`` was measured."""
        with refusals(self.directory / FILE):
            rows = self._db.execute("SELECT point FROM results WHERE split = ?", (split,))
            return {_point(text) for (text,) in rows}

    def splits(self) -> tuple[str, ...]:
        """The splits that have results."""
        with refusals(self.directory / FILE):
            rows = self._db.execute("SELECT split FROM results GROUP BY split ORDER BY min(number)")
            return tuple(split for (split,) in rows)

    def told(self) -> Told:
        """The search results of the study's space in the order in which strategies are told them.

        That is: of earlier studies as they arrived, then batch by batch. It decides between winners
        that are equal in all else, whatever the workers' pace was.
        """
        space, outs = self.study.space, self.outs().keys() | self.broken().keys()
        rows = {result.point: result for result in self.results() if result.point in space}
        asked = dict.fromkeys(point for batch in self.asked() for point in batch.points)
        found = {p: result for p, result in rows.items() if result.number <= self.since}
        found |= {point: rows[point] for point in asked if point in rows}
        found |= {point: result for point, result in rows.items() if point not in found}
        out = tuple(point for point in asked if point in outs and point not in found)
        if not found:
            return replace(Told.nothing(self.study.board), out=out)
        return Told(tuple(found), np.stack([r.scores for r in found.values()]), out=out)

    def ask(self, batch: Batch) -> Batch:
        """Keep what the strategy asked for, before it is measured. Returns it with its number."""
        data = {
            "points": [list(point) for point in batch.points],
            "reasons": list(batch.reasons),
            "note": batch.note,
        }
        if batch.against is not None:
            data["against"] = list(batch.against)
        number = self._write(
            "INSERT INTO asked (study, batch) VALUES (?, ?)",
            (self.number, json.dumps(data, ensure_ascii=False)),
        )
        return replace(batch, number=number)

    def asked(self) -> list[Batch]:
        """What was asked for in this study, in order."""
        with refusals(self.directory / FILE):
            rows = self._db.execute(
                "SELECT number, batch FROM asked WHERE study = ? ORDER BY number", (self.number,)
            ).fetchall()
        found = []
        for number, text in rows:
            data = json.loads(text)
            points = tuple(map(tuple, data["points"]))
            against = tuple(data["against"]) if "against" in data else None
            found.append(Batch(points, tuple(data["reasons"]), data["note"], against, number))
        return found

    def put_out(self, point: Point, out: Out, seconds: float, worker: str) -> None:
        """Keep that ``point`` lost this study's race, and why; its scores are not kept."""
        self.note(
            OUT,
            study=self.number,
            point=list(point),
            against=list(out.against),
            margin=out.margin,
            doubt=out.doubt,
            items=out.items,
            of=out.of,
            reason=out.reason,
            seconds=seconds,
            worker=worker,
        )

    def outs(self) -> dict[Point, Note]:
        """The points that were put out of this study's race, in order.

        Another study wants something else: what it put out is free here.
        """
        notes = (note for note in self.notes(OUT) if note.value["study"] == self.number)
        return {tuple(note.value["point"]): note for note in notes}

    def put_aside(self, point: Point, reason: str, seconds: float, worker: str) -> None:
        """Keep that something is not finite at ``point``, and what."""
        self.note(BROKEN, point=list(point), reason=reason, seconds=seconds, worker=worker)

    def broken(self) -> dict[Point, str]:
        """The points at which something is not finite, in order, and what.

        Weights and items decide it, so that it holds for every study of this identity.
        """
        notes = self.notes(BROKEN)
        return {tuple(note.value["point"]): str(note.value["reason"]) for note in notes}

    def note(self, kind: str, **value: Any) -> None:
        """Keep an event; ``value`` is JSON-able."""
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        self._write(
            "INSERT INTO notes (kind, value, added) VALUES (?, ?, ?)", (kind, text, time.time())
        )

    def notes(self, kind: str | None = None) -> list[Note]:
        """The events (of ``kind``), in order."""
        where, values = ("", ()) if kind is None else ("WHERE kind = ? ", (kind,))
        with refusals(self.directory / FILE):
            rows = self._db.execute(
                f"SELECT kind, value, number, added FROM notes {where}ORDER BY number", values
            ).fetchall()
        return [Note(kind, json.loads(text), number, added) for kind, text, number, added in rows]

    def _take_up(self, study: Study, identity: Identity) -> None:
        """Go on with this study, or begin it on the points of an earlier one."""
        if differing := self.identity.differences(identity):
            raise OutputError(
                f"{self.directory}: it holds another study, and its scores are not mixed with "
                f"these; what differs: {'; '.join(differing)}; give --run another name"
            )
        for split, old, new in (
            (SEARCH, self.study.board, study.board),
            (HOLDOUT, self.study.holdout, study.holdout),
        ):
            if (old and old.outputs) != (new and new.outputs):
                raise OutputError(
                    f"{self.directory}: {old and old.outputs} scores a point of {split}, expected "
                    f"{new and new.outputs}; give --run another name"
                )
        if study == self.study:
            return
        (since,) = self._one("SELECT coalesce(max(number), 0) FROM results")
        self.number = self._write(
            "INSERT INTO studies (since, study, added) VALUES (?, ?, ?)",
            (since, study.to_json(), time.time()),
        )
        self.since, self.study = int(since), study

    def _rows(self, where: str, *values: Any) -> Iterator[tuple[Any, ...]]:
        with refusals(self.directory / FILE):
            yield from self._db.execute(
                "SELECT point, split, scores, seconds, worker, reason, number, added, crc "
                f"FROM results {where}",
                values,
            )

    def _result(self, row: tuple[Any, ...]) -> Result:
        point, split, blob, seconds, worker, reason, number, added, crc = row
        expected = 4 * self.study.board_of(split).outputs
        if len(blob) != expected or zlib.crc32(blob) != crc:
            raise damaged(
                self.directory / FILE, f"the scores of {split} at ({point}) are not what was kept"
            )
        scores = np.frombuffer(blob, "<f4")
        return Result(_point(point), split, scores, seconds, worker, reason, number, added)

    def _meta(self, key: str) -> str:
        (value,) = self._one("SELECT value FROM meta WHERE key = ?", key)
        return str(value)

    def _one(self, query: str, *values: Any) -> tuple[Any, ...]:
        """The last row of ``query``."""
        with refusals(self.directory / FILE):
            rows = self._db.execute(query, values).fetchall()
        if not rows:
            raise damaged(self.directory / FILE, "a row is missing")
        found: tuple[Any, ...] = rows[-1]
        return found

    def _write(self, query: str, values: Sequence[Any]) -> int:
        if self._lock is None:
            raise AvopsError(f"{self.directory}: opened for reading, nothing can be added")
        with refusals(self.directory / FILE), self._db:
            number = self._db.execute(query, tuple(values)).lastrowid
        assert number is not None
        return number


def _key(point: Point) -> str:
    return ",".join(map(str, point))


def _point(text: str) -> Point:
    return tuple(map(int, text.split(",")))
