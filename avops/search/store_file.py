"""The SQLite file of a run directory: made in one transaction, checked before it is believed."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from avops.errors import DataError, OutputError, WriteError
from avops.search.lock import WriterLock

if TYPE_CHECKING:
    from avops.search.identity import Identity
    from avops.search.study import Study

FILE = "study.sqlite"
FORMAT = 1
_APPLICATION = 0x61766F70  # "avop": which program a SQLite file belongs to
_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE studies (number INTEGER PRIMARY KEY, since INTEGER NOT NULL, study TEXT NOT NULL,
    added REAL NOT NULL);
CREATE TABLE asked (number INTEGER PRIMARY KEY, study INTEGER NOT NULL, batch TEXT NOT NULL);
CREATE TABLE results (number INTEGER PRIMARY KEY, split TEXT NOT NULL, point TEXT NOT NULL,
    scores BLOB NOT NULL, crc INTEGER NOT NULL, seconds REAL NOT NULL, worker TEXT NOT NULL,
    reason TEXT NOT NULL, added REAL NOT NULL, UNIQUE (split, point));
CREATE TABLE notes (number INTEGER PRIMARY KEY, kind TEXT NOT NULL, value TEXT NOT NULL,
    added REAL NOT NULL);
"""
_TABLES = ("meta", "studies", "asked", "results", "notes")


def check_directory(directory: Path) -> None:
    """Make it, or see that it is a run's."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        names = {entry.name for entry in directory.iterdir()}
    except OSError as error:
        raise OutputError(
            f"{directory}: cannot be the run directory: {error.strerror}; give --run another name"
        ) from error
    if names and not names & {FILE, WriterLock.FILE}:
        raise OutputError(
            f"{directory}: it holds other files ({min(names)}) and no {FILE}, expected a run "
            "directory or an empty one; give --run another name"
        )


def connect(path: Path, *, write: bool = True) -> sqlite3.Connection:
    """A connection that waits for others; for reading, one that can change nothing."""
    mode = "rwc" if write else "rw"  # a reader of a WAL file makes its index, too
    uri = f"{path.absolute().as_uri()}?mode={mode}"
    try:
        connection = sqlite3.connect(uri, uri=True, timeout=30, check_same_thread=False)
    except sqlite3.OperationalError:
        if write:
            raise
        uri = f"{path.absolute().as_uri()}?mode=ro"
        connection = sqlite3.connect(uri, uri=True, timeout=30, check_same_thread=False)
    if not write:
        connection.execute("PRAGMA query_only = 1")
    return connection


def set_durable(connection: sqlite3.Connection) -> None:
    """Only once the file is known to be ours: the mode is kept in it."""
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")


def is_new(connection: sqlite3.Connection) -> bool:
    """Whether nothing is in it: a kill between making the file and filling it leaves that."""
    ((tables,),) = connection.execute("SELECT count(*) FROM sqlite_master").fetchall()
    return tables == 0 and _pragma(connection, "application_id") in (0, _APPLICATION)


def create(connection: sqlite3.Connection, study: Study, identity: Identity) -> None:
    """All tables and the first study in one transaction."""
    guards = "".join(
        f"CREATE TRIGGER {table}_{event} BEFORE {event} ON {table} BEGIN "
        "SELECT raise(ABORT, 'rows are only added'); END;"
        for table in _TABLES
        for event in ("UPDATE", "DELETE")
    )
    marks = f"PRAGMA application_id = {_APPLICATION}; PRAGMA user_version = {FORMAT};"
    with connection:
        connection.executescript(f"BEGIN; {_SCHEMA} {guards} {marks}")
        connection.execute("INSERT INTO meta VALUES ('identity', ?)", (identity.to_json(),))
        connection.execute(
            "INSERT INTO studies (since, study, added) VALUES (0, ?, ?)",
            (study.to_json(), time.time()),
        )


def check_file(connection: sqlite3.Connection, path: Path) -> None:
    """Raises DataError for a file of others, of another format, or with damage in it."""
    application, version = (_pragma(connection, x) for x in ("application_id", "user_version"))
    if application != _APPLICATION:
        raise DataError(
            f"{path}: a SQLite file of another program, expected one of `avops search`; "
            "give --run another name"
        )
    if version != FORMAT:
        raise DataError(
            f"{path}: format {version}, and this version of avops reads {FORMAT}; "
            "use the version that wrote it"
        )
    found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        raise damaged(path, str(found))


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    return int(connection.execute(f"PRAGMA {name}").fetchone()[0])


@contextmanager
def refusals(path: Path) -> Iterator[None]:
    """SQLite's errors as ours."""
    try:
        yield
    except sqlite3.IntegrityError:
        raise
    except sqlite3.OperationalError as error:
        if any(word in str(error) for word in ("disk is full", "disk I/O", "readonly")):
            raise WriteError(
                f"{path}: cannot be written: {error}; what was kept before is whole: make room "
                "and run the same command again"
            ) from error
        raise damaged(path, str(error)) from error
    except sqlite3.DatabaseError as error:
        raise damaged(path, str(error)) from error


def damaged(path: Path, why: str) -> DataError:
    """The error of a file that cannot be used."""
    return DataError(
        f"{path}: no sound run of `avops search`: {why}; give --run another name, or put a copy "
        "back"
    )
