"""The full table S[candidate, item, level], as a file.

``.npz``: arrays that numpy.load opens without pickle. ``.csv``: one row per candidate, item and
level, where ``winner`` is the level's part of the win: 1, 0, or 1/k where k levels tie. The file
is written under a temporary name beside its target, and renamed.
"""

from __future__ import annotations

import csv
import json
import os
import zipfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from avops.errors import DataError, OutputError, WriteError
from avops.score.metrics import check_scores, winners

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from os import PathLike

    from numpy.typing import NDArray

    from avops.score.items import Items
    from avops.score.plan import TokenPlan

COLUMNS = (
    "candidate",
    "domain",
    "item",
    "line",
    "id",
    "level",
    "mean_logprob",
    "tokens",
    "winner",
)


@dataclass(frozen=True, eq=False)
class ScoreTable:
    """A table as read back: ``scores`` f32 [candidate, item, level], ``tokens`` [item, level]."""

    scores: NDArray[np.float32]
    candidates: tuple[str, ...]
    levels: tuple[str, ...]
    domains: tuple[str, ...]
    ids: tuple[str | None, ...]
    lines: NDArray[np.int64]
    tokens: NDArray[np.int32]
    record: dict[str, Any]


def check_table_path(path: Path) -> None:
    """Refuse a path whose suffix is no kind of table. Raises OutputError."""
    if path.suffix not in (".npz", ".csv"):
        raise OutputError(
            f"{path}: a table cannot be written as {path.suffix or 'a file without suffix'!r}; "
            "name it .npz or .csv"
        )


def write_table(
    path: str | PathLike[str],
    scores: NDArray[np.float32],
    candidates: Sequence[str],
    items: Items,
    plan: TokenPlan,
    *,
    force: bool = False,
) -> None:
    """Write S[candidate, item, level] of ``items`` as .npz or .csv.

    Raises
    ------
    OutputError
        Another suffix, or the file exists and ``force`` is not set, or may not be written.
    DataError, NonFiniteError
        Scores of another shape, or not finite.
    WriteError
        Writing failed (disk full, I/O error).

    """
    path = Path(path)
    check_table_path(path)
    if len(scores) != len(candidates):
        raise DataError(
            f"{path}: scores of {len(scores)} candidates, expected {len(candidates)}; "
            "give one name for each candidate"
        )
    for candidate in scores:
        check_scores(candidate, items)
    with _publish(path, force=force) as file:
        writer = _write_npz if path.suffix == ".npz" else _write_csv
        writer(file, np.asarray(scores, np.float32), candidates, items, plan)


def read_table(path: str | PathLike[str]) -> ScoreTable:
    """Read a table written as .npz."""
    try:
        with Path(path).open("rb") as file:
            arrays = np.load(file, allow_pickle=False)
            if isinstance(arrays, np.ndarray):
                raise ValueError("one array without names")
            return ScoreTable(
                scores=arrays["scores"],
                candidates=tuple(arrays["candidates"].tolist()),
                levels=tuple(arrays["levels"].tolist()),
                domains=tuple(arrays["domains"].tolist()),
                ids=tuple(text or None for text in arrays["ids"].tolist()),
                lines=arrays["lines"],
                tokens=arrays["tokens"],
                record=json.loads(str(arrays["record"])),
            )
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path}: not a score table ({error}), expected an .npz file from avops; "
            "write it again with --table"
        ) from error


def _write_npz(
    file: BinaryIO,
    scores: NDArray[np.float32],
    candidates: Sequence[str],
    items: Items,
    plan: TokenPlan,
) -> None:
    np.savez(
        file,
        scores=scores,
        candidates=np.array(candidates, np.str_),
        levels=np.array(items.levels, np.str_),
        domains=np.array([item.domain for item in items], np.str_),
        ids=np.array([item.id or "" for item in items], np.str_),
        lines=np.array([item.line for item in items], np.int64),
        tokens=plan.scored,
        record=np.array(json.dumps(plan.record.to_dict()), np.str_),
    )


def _write_csv(
    file: BinaryIO,
    scores: NDArray[np.float32],
    candidates: Sequence[str],
    items: Items,
    plan: TokenPlan,
) -> None:
    rows = csv.writer(_Text(file), lineterminator="\n")
    rows.writerow(COLUMNS)
    for candidate, table in zip(candidates, scores, strict=True):
        best = winners(table)
        for i, item in enumerate(items):
            for column, level in enumerate(items.levels):
                part = best[i, column] / best[i].sum()
                rows.writerow(
                    (
                        candidate,
                        item.domain,
                        i,
                        item.line,
                        item.id or "",
                        level,
                        str(table[i, column]),  # the shortest text that reads back as this f32
                        plan.scored[i, column],
                        f"{part:.6g}",
                    )
                )


class _Text:
    """The text side of a binary file, for csv.writer."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, text: str) -> int:
        return self._file.write(text.encode())


@contextmanager
def _publish(path: Path, *, force: bool) -> Iterator[BinaryIO]:
    """A file under a temporary name; renamed to ``path`` when complete, otherwise removed."""
    if path.exists() and not force:
        raise OutputError(f"{path}: the file exists; choose another name or replace it (--force)")
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = partial.open("xb")
    except OSError as error:
        raise OutputError(
            f"{path}: the file cannot be written: {error.strerror}; choose another place"
        ) from error
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if force:
            partial.replace(path)
        else:
            os.link(partial, path)  # fails where a file appeared meanwhile
            partial.unlink()
    except FileExistsError:
        partial.unlink(missing_ok=True)
        raise OutputError(f"{path}: the file exists; choose another name or --force") from None
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise WriteError(
            f"{path}: writing the table failed: {error.strerror}; free some space and try again"
        ) from error
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
