"""The prompting baseline: no alignment vectors, but an instruction before every query.

For each wanted level, all responses are scored after that level's instruction; which level then
wins says how far asking goes. The instruction stands before the query, with a blank line between,
as part of the user's turn.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avops.errors import DataError
from avops.score.lines import Where, parse_object

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from os import PathLike

    from avops.score.items import Items

INSTRUCTIONS = {
    "exp": "Answer as a specialist in this field would: precise, detailed and complete, in the "
    "terms of the profession.",
    "gen": "Answer in general terms, as a well-read person without training in this field would. "
    "Give an overview and leave the details of the profession out.",
    "avd": "Do not answer the question. Say politely that you cannot help with it, and that the "
    "person should ask a qualified professional.",
}
"""Instructions for expert, generic and avoiding responses."""


def instructed(items: Items, instruction: str) -> Items:
    """``items`` with ``instruction`` before every query."""
    entries = tuple(replace(item, query=f"{instruction}\n\n{item.query}") for item in items)
    return replace(items, entries=entries)


def instructions_for(
    levels: Sequence[str], path: str | PathLike[str] | None = None
) -> dict[str, str]:
    """Level -> its instruction, from the file ``path`` or of those here.

    The file is JSON (.json) or TOML (.toml): an instruction for each level. Raises DataError for
    one that is missing, superfluous or no text, and for a file that cannot be read.
    """
    source = "the built-in instructions" if path is None else str(path)
    known: Mapping[str, Any] = INSTRUCTIONS if path is None else _read(Path(path))
    missing = [level for level in levels if level not in known]
    if missing:
        raise DataError(
            f"{source}: no instruction for level {missing[0]!r} among {', '.join(known) or 'none'}"
            f"; give one for each of {', '.join(levels)} (--instructions FILE)"
        )
    unknown = [level for level in known if level not in levels]
    if unknown and path is not None:
        raise DataError(
            f"{source}: an instruction for {unknown[0]!r}, expected only the levels scored: "
            f"{', '.join(levels)}; remove it, or score this level too"
        )
    for level in levels:
        text = known[level]
        if not isinstance(text, str):
            raise DataError(
                f"{source}: the instruction for {level!r} is {type(text).__name__}, expected a text"
            )
        if not text.strip() or any("\ud800" <= char <= "\udfff" for char in text):
            raise DataError(
                f"{source}: the instruction for {level!r} is {text!r}, expected a text with "
                "visible characters"
            )
    return {level: str(known[level]).strip() for level in levels}


def _read(path: Path) -> dict[str, Any]:
    if path.suffix not in (".json", ".toml"):
        raise DataError(
            f"{path}: instructions cannot be read from {path.suffix or 'a file without suffix'!r}, "
            "expected .json or .toml"
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: the instructions cannot be read: {error}; give a .json or .toml file"
        ) from error
    if path.suffix == ".json":
        return parse_object(text, Where(str(path), 1))
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise DataError(f'{path}: not valid TOML: {error}; write level = "text"') from error
