"""Annotations: who gave which label to what, and the level that it was made for.

    {"item": "med-3fa29c01aa-1/exp", "annotator": "A", "label": "exp", "level": "exp"}

JSON lines, or CSV with a header. ``domain`` is optional; other fields are not read, and named. An
annotator labels an item once; an item has one level and one domain, whoever labels it.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avops.errors import DataError
from avops.score.items import OVERALL
from avops.score.lines import Where, decode, name_of, parse_object

FIELDS = ("item", "annotator", "label", "level")
DOMAIN = "domain"
POOLED = "pooled"
"""The name under which all annotators are taken together; none may bear it."""


@dataclass(frozen=True)
class Annotation:
    """One label. domain: None where the file names none."""

    item: str
    annotator: str
    label: str
    level: str
    domain: str | None


@dataclass(frozen=True)
class Annotations:
    """The labels of one file. ignored: fields that are not read."""

    source: str
    entries: tuple[Annotation, ...]
    ignored: tuple[str, ...] = ()

    @property
    def annotators(self) -> tuple[str, ...]:
        """In order of first appearance."""
        return tuple(dict.fromkeys(entry.annotator for entry in self.entries))

    @property
    def domains(self) -> tuple[str, ...]:
        """In order of first appearance; none where the file has no domains."""
        return tuple(dict.fromkeys(e.domain for e in self.entries if e.domain is not None))

    @property
    def levels(self) -> tuple[str, ...]:
        """The true levels, in order of first appearance."""
        return tuple(dict.fromkeys(entry.level for entry in self.entries))

    @property
    def labels(self) -> tuple[str, ...]:
        """The levels, then labels that are none."""
        return tuple(dict.fromkeys((*self.levels, *(entry.label for entry in self.entries))))

    def of(self, domain: str | None) -> tuple[Annotation, ...]:
        """Those of one domain; all when None."""
        return tuple(e for e in self.entries if domain is None or e.domain == domain)


def load_annotations(path: Path) -> Annotations:
    """Read ``path``: CSV if it is named so, JSON lines otherwise.

    Raises DataError with file, line and field.
    """
    entries: list[Annotation] = []
    ignored: dict[str, None] = {}
    firsts: dict[tuple[str, str], int] = {}
    truths: dict[str, tuple[Annotation, int]] = {}
    for record, where in _records(path):
        entry = _parse(record, where)
        line = firsts.setdefault((entry.item, entry.annotator), where.line)
        if line != where.line:
            raise where.error(
                "item",
                f"{entry.item!r} by {entry.annotator!r} again, first on line {line}",
                "each item once for each annotator",
            )
        truth, line = truths.setdefault(entry.item, (entry, where.line))
        for field in ("level", DOMAIN):
            got, first = getattr(entry, field), getattr(truth, field)
            if got != first:
                raise where.error(
                    field,
                    _shown(got),
                    f"{_shown(first)}, as item {entry.item!r} has on line {line}",
                )
        first_entry = entries[0] if entries else entry
        if (entry.domain is None) != (first_entry.domain is None):
            raise where.error(DOMAIN, _shown(entry.domain), "a domain on all lines, or on none")
        ignored |= dict.fromkeys(k for k in record if k not in (*FIELDS, DOMAIN))
        entries.append(entry)
    if not entries:
        raise DataError(f"{path}: no annotations in the file, expected {', '.join(FIELDS)} a line")
    return Annotations(str(path), tuple(entries), tuple(ignored))


def _parse(record: Mapping[str, Any], where: Where) -> Annotation:
    item, annotator, label, level = (name_of(dict(record), f, where).strip() for f in FIELDS)
    domain = name_of(dict(record), DOMAIN, where).strip() if DOMAIN in record else None
    if annotator == POOLED:
        raise where.error("annotator", repr(annotator), f"another name: {POOLED!r} stands for all")
    if domain == OVERALL:
        raise where.error(DOMAIN, repr(domain), "another name: 'all' stands for every domain")
    return Annotation(item, annotator, label, level, domain)


def _records(path: Path) -> Iterator[tuple[Mapping[str, Any], Where]]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{path}: the annotations cannot be read: {error.strerror}; give a .csv or .jsonl file "
            f"with {', '.join(FIELDS)}"
        ) from None
    if path.suffix.lower() == ".csv":
        yield from _csv(path, data)
        return
    for number, raw in enumerate(data.split(b"\n"), start=1):
        where = Where(str(path), number)
        text = decode(raw, where)
        if text.strip():
            yield parse_object(text, where), where


def _csv(path: Path, data: bytes) -> Iterator[tuple[Mapping[str, Any], Where]]:
    first = Where(str(path), 1)
    # Line by line for the error's sake; a quoted field may hold line breaks.
    text = "\n".join(
        decode(raw, Where(str(path), number))
        for number, raw in enumerate(data.split(b"\n"), start=1)
    )
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = next(reader, [])
        names = [name.strip() for name in header]
        _check_header(names, first)
        start = reader.line_num + 1
        for row in reader:
            where, start = Where(str(path), start), reader.line_num + 1
            if not row:
                continue
            if len(row) != len(names):
                raise where.error(None, f"{len(row)} fields", f"{len(names)}, as in the header")
            yield dict(zip(names, row, strict=True)), where
    except csv.Error as error:
        raise Where(str(path), reader.line_num).error(None, str(error), "CSV") from None


def _check_header(names: Sequence[str], where: Where) -> None:
    for field in FIELDS:
        if field not in names:
            raise where.error(
                field,
                f"the columns {', '.join(names) or '(none)'}",
                f"{', '.join(FIELDS)} among them",
            )
    if len(set(names)) < len(names):
        raise where.error(None, f"the columns {', '.join(names)}", "each name once")


def _shown(value: str | None) -> str:
    return "nothing" if value is None else repr(value)
