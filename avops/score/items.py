"""Items: one query with one response per level, read from JSON lines.

    {"domain": "med", "query": "...", "responses": {"exp": "...", "gen": "...", "avd": "..."}}

``id`` is optional; any other field is an error, so that a misspelt one is never ignored. Blank
lines are skipped, and counted in line numbers. Levels are free to name.

Preference pairs are items of the two levels ``chosen`` and ``rejected`` (see ``pairs``); a file
holds one of the two formats.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from avops.errors import DataError
from avops.score import pairs
from avops.score.lines import (
    Where,
    check_name,
    check_text,
    decode,
    kind,
    name_of,
    parse_object,
    text_of,
)

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
    """The items of one data set: every entry has a response for each of ``levels``.

    ignored: fields of preference pairs that are not read.
    """

    source: str
    levels: tuple[str, ...]
    entries: tuple[Item, ...]
    ignored: tuple[str, ...] = ()

    @property
    def domains(self) -> tuple[str, ...]:
        """The domains, in order of first appearance."""
        return tuple(dict.fromkeys(item.domain for item in self.entries))

    def place(self, index: int, level: str | None = None) -> str:
        """Where item ``index`` (and ``level``) stands, for messages."""
        place = f"{self.source}, line {self.entries[index].line}"
        return place if level is None else f"{place}, level {level!r}"

    def select(self, *, domains: Sequence[str] | None = None, limit: int | None = None) -> Items:
        """The items of ``domains`` (None: all), the first ``limit`` of each, in their order.

        Raises DataError for a domain without items or a limit below 1.
        """
        if limit is not None and limit < 1:
            raise DataError(f"limit is {limit}, expected 1 or more items of each domain")
        wanted = self.domains if domains is None else tuple(domains)
        for domain in wanted:
            if domain not in self.domains:
                raise DataError(
                    f"{self.source}: no items of domain {domain!r}, expected one of "
                    f"{', '.join(self.domains)}; name domains as the items do"
                )
        left = dict.fromkeys(wanted, len(self) if limit is None else limit)
        kept = []
        for item in self.entries:
            if left.get(item.domain, 0):
                left[item.domain] -= 1
                kept.append(item)
        return replace(self, entries=tuple(kept))

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
        JSON lines, UTF-8: items, or preference pairs.
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
    entries: list[Item] = []
    lines_of_ids: dict[str, int] = {}
    ignored: dict[str, None] = {}
    paired: bool | None = None
    for record, where in _records(source):
        if paired is None:
            paired = pairs.is_pair(record)
        elif paired != pairs.is_pair(record):
            raise where.error(
                None,
                "an item with levels" if paired else "a preference pair",
                f"only {'preference pairs' if paired else 'items with levels'}, as on line "
                f"{entries[0].line}: one format per file",
            )
        item = (_parse_pair if paired else _parse)(record, where)
        wanted = wanted or tuple(item.responses)
        _check_responses(item, wanted, where, exact=levels is None)
        if item.id is not None and lines_of_ids.setdefault(item.id, where.line) != where.line:
            raise where.error(
                "id", f"{item.id!r} again, first on line {lines_of_ids[item.id]}", "ids used once"
            )
        if paired:
            ignored |= dict.fromkeys(name for name in record if name not in pairs.FIELDS)
        entries.append(replace(item, responses={level: item.responses[level] for level in wanted}))
    if wanted is None or not entries:
        raise DataError(f"{source}: no items in the file, expected one JSON object per line")
    return Items(source, wanted, tuple(entries), tuple(ignored))


def holds_pairs(path: str | PathLike[str]) -> bool:
    """Whether the first item of the file is a preference pair. Raises DataError."""
    first = next(_records(str(path)), None)
    return first is not None and pairs.is_pair(first[0])


def _records(source: str) -> Iterator[tuple[dict[str, Any], Where]]:
    """The JSON object of every line that is not blank."""
    try:
        data = Path(source).read_bytes()
    except OSError as error:
        raise DataError(
            f"{source}: the item file cannot be read: {error.strerror}; "
            "give the path of a JSON-lines file"
        ) from error
    for number, raw in enumerate(data.split(b"\n"), start=1):
        where = Where(source, number)
        text = decode(raw, where)
        if text.strip():
            yield parse_object(text, where), where


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


def _parse(record: dict[str, Any], where: Where) -> Item:
    unknown = [name for name in record if name not in FIELDS]
    if unknown:
        raise where.error(unknown[0], "an unknown field", f"only {', '.join(FIELDS)}")
    domain = _check_domain(name_of(record, "domain", where), where)
    query = text_of(record, "query", where)
    responses = record.get("responses")
    if not isinstance(responses, dict):
        got = kind(responses) if "responses" in record else "nothing (the field is missing)"
        raise where.error("responses", got, "an object with a text for each level")
    for level in responses:
        check_name(level, "responses", where)
        check_text(responses[level], f"responses.{level}", where)
    return Item(domain, query, responses, where.line, _id(record, where))


def _parse_pair(record: dict[str, Any], where: Where) -> Item:
    query, responses = pairs.query_and_responses(record, where)
    domain = _check_domain(pairs.domain_of(record, where), where)
    return Item(domain, query, responses, where.line, _id(record, where))


def _id(record: dict[str, Any], where: Where) -> str | None:
    return name_of(record, "id", where) if "id" in record else None


def _check_domain(domain: str, where: Where) -> str:
    if domain == OVERALL:
        raise where.error("domain", repr(domain), "another name: 'all' stands for every domain")
    return domain


def _check_responses(item: Item, wanted: tuple[str, ...], where: Where, *, exact: bool) -> None:
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
