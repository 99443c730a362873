"""Prompts as files that users edit: ``avops data templates DIR`` writes ours.

    templates.toml     levels in order, domains with their descriptions, how refusals begin
    roots.txt          {count} persons out of nothing
    related.txt        {count} persons from one: {persona}
    queries.txt        {count} queries of a {persona} in a {domain}
    level-NAME.txt     the answer of one level to a {query}

A placeholder is a name in braces; other braces stand for themselves.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avops.errors import DataError, OutputError
from avops.score.items import OVERALL

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SETTINGS = "templates.toml"
ROOTS, RELATED, QUERIES = "roots.txt", "related.txt", "queries.txt"
_KEYS = ("levels", "declining", "refusals", "domains")
_NAME = re.compile(r"[A-Za-z0-9_]+")
_PLACE = re.compile(r"\{([A-Za-z_]+)\}")
_LEVEL = ("query", "domain", "persona", "paragraphs")
# file: (placeholders it must have, placeholders it may have besides)
_PLACES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    ROOTS: (("count",), ()),
    RELATED: (("count", "persona"), ()),
    QUERIES: (("count", "persona", "domain"), ()),
}


@dataclass(frozen=True)
class Templates:
    """The prompts of a data set.

    domains: name to what prompts call it. declining: levels whose answers decline. refusals: how
    a refusal begins. files: every file by name, as bytes.
    """

    source: str
    levels: tuple[str, ...]
    domains: Mapping[str, str]
    declining: tuple[str, ...]
    refusals: tuple[str, ...]
    files: Mapping[str, bytes]

    def fill(self, file: str, **values: str) -> str:
        """The prompt in ``file`` with its placeholders filled, all in one pass."""
        text = self.files[file].decode("utf-8").strip()
        return _PLACE.sub(lambda place: values[place[1]], text)

    def digests(self) -> dict[str, str]:
        """SHA-256 of every file that is in use."""
        return {name: hashlib.sha256(data).hexdigest() for name, data in self.files.items()}

    def digest(self) -> str:
        """SHA-256 over names and contents of all files."""
        lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(self.digests().items()))
        return hashlib.sha256(lines.encode()).hexdigest()


def level_file(level: str) -> str:
    """The file that holds the prompt of ``level``."""
    return f"level-{level}.txt"


def packaged() -> dict[str, bytes]:
    """The files that come with avops."""
    root = importlib.resources.files("avops.align.data") / "prompts"
    found = {
        entry.name: entry.read_bytes()
        for entry in root.iterdir()
        if entry.name == SETTINGS or entry.name.endswith(".txt")
    }
    return dict(sorted(found.items()))


def write_templates(directory: Path) -> list[Path]:
    """Write the packaged files into ``directory``, to be edited.

    Raises OutputError when one of them is there already: it may have been edited.
    """
    from avops.disk import write_file

    files = packaged()
    for name in files:
        if (directory / name).exists():
            raise OutputError(
                f"{directory / name}: exists already, and may have been edited; "
                "give another directory, or remove it first"
            )
    for name, data in files.items():
        write_file(directory / name, data)
    return [directory / name for name in files]


def load_templates(directory: Path | None = None) -> Templates:
    """The templates in ``directory``; the packaged ones when None.

    Raises DataError with file and line for what is missing, misspelt or unknown.
    """
    if directory is None:
        return _parse(packaged(), "avops' own templates")
    if not directory.is_dir():
        raise DataError(
            f"--templates {directory}: no such directory; "
            f"make one with: avops data templates {directory}"
        )
    files = {}
    for path in sorted(directory.iterdir()):
        if path.name == SETTINGS or path.suffix == ".txt":
            try:
                files[path.name] = path.read_bytes()
            except OSError as error:
                raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    return _parse(files, str(directory))


def _parse(files: dict[str, bytes], source: str) -> Templates:
    table = _settings(files, source)
    levels = _names(table, "levels", source)
    declining = _names(table, "declining", source, needed=False)
    for level in declining:
        if level not in levels:
            raise DataError(
                f"{source}/{SETTINGS}: declining names {level!r}, expected one of the levels "
                f"{', '.join(levels)}"
            )
    wanted = (ROOTS, RELATED, QUERIES, *(level_file(level) for level in levels))
    for name in wanted:
        if name not in files:
            raise DataError(
                f"{source}: no file {name}, expected {', '.join((SETTINGS, *wanted))}; "
                "avops data templates DIR writes a complete set"
            )
        _check(files[name], name, f"{source}/{name}")
    return Templates(
        source=source,
        levels=levels,
        domains=_domains(table, source),
        declining=declining,
        refusals=_texts(table, "refusals", source),
        files={name: files[name] for name in (SETTINGS, *wanted)},
    )


def _settings(files: dict[str, bytes], source: str) -> dict[str, Any]:
    if SETTINGS not in files:
        raise DataError(
            f"{source}: no file {SETTINGS}; avops data templates DIR writes a complete set"
        )
    place = f"{source}/{SETTINGS}"
    try:
        table = tomllib.loads(files[SETTINGS].decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"{place}: not valid TOML: {error}") from None
    for key in table:
        if key not in _KEYS:
            raise DataError(f"{place}: unknown key {key!r}, expected {', '.join(_KEYS)}")
    return table


def _check(data: bytes, name: str, place: str) -> None:
    """Refuse a prompt that is empty, not UTF-8, or whose placeholders are not the known ones."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{place}: byte 0x{data[error.start]:02x} at {error.start}, expected UTF-8 text"
        ) from None
    if not text.strip():
        raise DataError(f"{place}: empty, expected a prompt")
    needed, more = _PLACES.get(name, (("query",), _LEVEL[1:]))
    known = (*needed, *more)
    for number, line in enumerate(text.split("\n"), start=1):
        for found in _PLACE.findall(line):
            if found not in known:
                raise DataError(
                    f"{place}, line {number}: unknown placeholder {{{found}}}, expected one of "
                    f"{', '.join(f'{{{each}}}' for each in known)}"
                )
    for place_name in needed:
        if f"{{{place_name}}}" not in text:
            raise DataError(f"{place}: the placeholder {{{place_name}}} is missing; put it in")


def _names(
    table: Mapping[str, Any], key: str, source: str, *, needed: bool = True
) -> tuple[str, ...]:
    names = _texts(table, key, source)
    wrong = [name for name in names if not _NAME.fullmatch(name)]
    if wrong or len(set(names)) < len(names) or (needed and not names):
        raise DataError(
            f"{source}/{SETTINGS}: {key} is {list(names)!r}, expected a list of different names "
            "of letters, digits and _"
        )
    return names


def _texts(table: Mapping[str, Any], key: str, source: str) -> tuple[str, ...]:
    value = table.get(key, [])
    if not isinstance(value, list) or not all(isinstance(t, str) and t.strip() for t in value):
        raise DataError(f"{source}/{SETTINGS}: {key} is {value!r}, expected a list of texts")
    return tuple(value)


def _domains(table: Mapping[str, Any], source: str) -> dict[str, str]:
    value = table.get("domains", {})
    right = isinstance(value, dict) and value
    if not right or not all(
        _NAME.fullmatch(k) and k != OVERALL and isinstance(v, str) and v.strip()
        for k, v in value.items()
    ):
        raise DataError(
            f"{source}/{SETTINGS}: [domains] is {value!r}, expected a table of one or more "
            f'names (letters, digits, _; not "{OVERALL}") with a description each, such as '
            'med = "medicine"'
        )
    return dict(value)
