"""Items: one query with one response per level, read from JSON lines.

    {"domain": "med", "query": "...", "responses": {"exp": "...", "gen": "...", "avd": "..."}}

``id`` is optional; any other field is an error, so that a misspelt one is never ignored. Blank
lines are skipped, and counted in line numbers. Levels are free to name.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from avops.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from os import PathLike

FIELDS = ("domain", "query", "responses", "id")
OVERALL = "all"
"""The name under which summaries pool every domain; no domain may bear it."""


@dataclass(frozen=True)
class Item:
    """One query and its responses, best known by its line in the item file."""

    domain: str
    query: str
    responses: Mapping[str, str]
    line: int
    id: str | None = None


@dataclass(frozen=True)
class Items(Sequence[Item]):
    """The items of one data set: every entry has a response for each of ``levels``."""

    source: str
    levels: tuple[str, ...]
    entries: tuple[Item, ...]

    @property
    def domains(self) -> tuple[str, ...]:
        """The domains, in order of first appearance."""
        return tuple(dict.fromkeys(item.domain for item in self.entries))

    def place(self, index: int, level: str | None = None) -> str:
        """Where item ``index`` (and ``level``) stands, for messages."""
        place = f"{self.source}, line {self.entries[index].line}"
        return place if level is None else f"{place}, level {level!r}"

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[Item]:
        return iter(self.entries)

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Item, ...]: ...
    def __getitem__(self, index: int | slice) -> Item | tuple[Item, ...]:
        return self.entries[index]


def load_items(path: str | PathLike[str], *, levels: Sequence[str] | None = None) -> Items:
    """Read and check an item file.

    Parameters
    ----------
    path
        JSON lines, UTF-8.
    levels
        The levels to score, in this order; every item must have them, others are left out.
        None: the levels of the first item, which every item must then have, and no others.

    Raises
    ------
    DataError
        With file, line, field, what was found and what was expected.

    """
    source = str(path)
    wanted = None if levels is None else _check_levels(levels)
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise DataError(
            f"{source}: the item file cannot be read: {error.strerror}; "
            "give the path of a JSON-lines file"
        ) from error
    entries: list[Item] = []
    lines_of_ids: dict[str, int] = {}
    for number, raw in enumerate(data.split(b"\n"), start=1):
        where = _Where(source, number)
        text = _decode(raw, where)
        if not text.strip():
            continue
        item = _parse(text, where)
        wanted = wanted or tuple(item.responses)
        _check_responses(item, wanted, where, exact=levels is None)
        if item.id is not None and lines_of_ids.setdefault(item.id, number) != number:
            raise where.error(
                "id", f"{item.id!r} again, first on line {lines_of_ids[item.id]}", "ids used once"
            )
        responses = {level: item.responses[level] for level in wanted}
        entries.append(Item(item.domain, item.query, responses, number, item.id))
    if wanted is None or not entries:
        raise DataError(f"{source}: no items in the file, expected one JSON object per line")
    return Items(source, wanted, tuple(entries))


@dataclass(frozen=True)
class _Where:
    """A line of the file, and the one wording of its errors."""

    source: str
    line: int

    def error(self, field: str | None, got: str, expected: str) -> DataError:
        place = f"{self.source}, line {self.line}" + (f", field {field!r}" if field else "")
        return DataError(f"{place}: got {got}, expected {expected}; correct this line")


def _check_levels(levels: Sequence[str]) -> tuple[str, ...]:
    names = tuple(levels)
    if isinstance(levels, str) or not names or not all(name.strip() for name in names):
        raise DataError(
            f"levels: got {levels!r}, expected one or more names; give them as exp,gen,avd"
        )
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise DataError(
            f"levels: {', '.join(doubled)} given more than once in {', '.join(names)}; "
            "name each level once"
        )
    return names


def _decode(raw: bytes, where: _Where) -> str:
    try:
        return raw.decode("utf-8-sig" if where.line == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise where.error(
            None, f"byte 0x{raw[error.start]:02x} at column {error.start + 1}", "UTF-8 text"
        ) from error


def _parse(text: str, where: _Where) -> Item:
    record = _parse_json(text, where)
    if not isinstance(record, dict):
        raise where.error(None, _kind(record), "a JSON object")
    unknown = [name for name in record if name not in FIELDS]
    if unknown:
        raise where.error(unknown[0], "an unknown field", f"only {', '.join(FIELDS)}")
    domain = _name(record, "domain", where)
    if domain == OVERALL:
        raise where.error("domain", repr(domain), "another name: 'all' stands for every domain")
    query = _text(record.get("query"), "query", where, present="query" in record)
    responses = record.get("responses")
    if not isinstance(responses, dict):
        got = _kind(responses) if "responses" in record else "nothing (the field is missing)"
        raise where.error("responses", got, "an object with a text for each level")
    for level in responses:
        _check_name(level, "responses", where)
        _text(responses[level], f"responses.{level}", where)
    item_id = _name(record, "id", where) if "id" in record else None
    return Item(domain, query, responses, where.line, item_id)


def _parse_json(text: str, where: _Where) -> Any:
    def pairs(members: list[tuple[str, Any]]) -> dict[str, Any]:
        record = dict(members)
        if len(record) < len(members):
            names = [name for name, _ in members]
            doubled = next(name for name in names if names.count(name) > 1)
            raise where.error(doubled, "the key more than once", "each key once")
        return record

    def constant(name: str) -> Any:
        raise where.error(None, name, "JSON, which has no such number")

    try:
        return json.loads(text, object_pairs_hook=pairs, parse_constant=constant)
    except json.JSONDecodeError as error:
        raise where.error(
            None, f"text that is not JSON ({error.msg} at column {error.colno})", "a JSON object"
        ) from error
    except (RecursionError, ValueError) as error:  # nested too deep; an integer too long to hold
        raise where.error(None, f"JSON out of bounds ({error})", "a JSON object") from error


def _check_responses(item: Item, wanted: tuple[str, ...], where: _Where, *, exact: bool) -> None:
    got = ", ".join(item.responses) or "no levels"
    for level in wanted:
        if level not in item.responses:
            raise where.error(f"responses.{level}", f"only {got}", f"all of {', '.join(wanted)}")
    if not wanted:
        raise where.error("responses", "no levels", "an object with a text for each level")
    extra = [level for level in item.responses if level not in wanted]
    if exact and extra:
        raise where.error(
            f"responses.{extra[0]}",
            f"the levels {got}",
            f"the first item's {', '.join(wanted)} (or choose levels to score)",
        )


def _text(value: Any, field: str, where: _Where, *, present: bool = True) -> str:
    if not present:
        raise where.error(field, "nothing (the field is missing)", "a text")
    if not isinstance(value, str):
        raise where.error(field, _kind(value), "a text")
    if not value.strip():
        raise where.error(field, f"an empty text {value!r}", "a text with visible characters")
    if any("\ud800" <= char <= "\udfff" for char in value):
        raise where.error(field, "half of a surrogate pair", "text that UTF-8 can encode")
    return value


def _name(record: dict[str, Any], field: str, where: _Where) -> str:
    value = _text(record.get(field), field, where, present=field in record)
    _check_name(value, field, where)
    return value


def _check_name(value: str, field: str, where: _Where) -> None:
    """Names go into tables and file columns: one line of visible text."""
    _text(value, field, where)
    if any(unicodedata.category(char) == "Cc" for char in value):
        raise where.error(field, f"control characters in {value!r}", "a name on one line")


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false"}
    names |= {int: "a number", float: "a number", type(None): "null"}
    return names[type(value)]
