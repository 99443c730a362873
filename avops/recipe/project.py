"""avops.toml: names and defaults of a project.

    base = "base.safetensors"          # checkpoint: file or directory
    data = "data/test.jsonl"           # items to score
    tokenizer = "tokenizer"            # default: beside the base
    levels = ["exp", "gen", "avd"]     # default: the levels of the data
    template = "..."                   # default: the tokenizer's chat template

    [av]
    med = "avs/med.safetensors"
    fin = { path = "aligned/fin", kind = "aligned" }

Paths are relative to the file's directory; ``~/`` is the home directory. This module parses text;
the CLI reads the file.
"""

from __future__ import annotations

import difflib
import posixpath
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from avops.errors import RecipeError
from avops.recipe.terms import KINDS, Source

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_TEXTS = ("base", "data", "tokenizer", "template")
_KEYS = (*_TEXTS, "levels", "av")
_NAME = re.compile(r"[A-Za-z0-9_.-]+")


@dataclass(frozen=True)
class Project:
    """Names and defaults. Paths are joined with the project's directory; None means not given."""

    base: str | None = None
    data: str | None = None
    tokenizer: str | None = None
    template: str | None = None
    levels: tuple[str, ...] | None = None
    avs: Mapping[str, Source] = field(default_factory=dict)


def parse_project(text: str, *, file: str, directory: str = "", home: str = "~") -> Project:
    """The project in the TOML ``text``; ``file`` names it in errors, ``home`` is what ~ stands for.

    Raises RecipeError for malformed TOML, an unknown key, or a value of the wrong type.
    """
    try:
        table = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        escape = "; in double quotes \\ is an escape: write paths with /" if "\\" in text else ""
        raise RecipeError(
            f"{file}: not valid TOML: {error}; texts stand in quotes, such as "
            f'base = "base.safetensors"{escape}'
        ) from None
    for key in table:
        if key not in _KEYS:
            near = difflib.get_close_matches(key, _KEYS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(_KEYS)}"
            raise RecipeError(f"{file}: unknown key {key!r}; {hint}")

    def placed(path: str) -> str:
        return (
            posixpath.join(home, path[2:]) if path[:2] == "~/" else posixpath.join(directory, path)
        )

    texts = {key: _text(table, key, file) for key in _TEXTS}
    for key in ("base", "data", "tokenizer"):
        texts[key] = texts[key] and placed(texts[key] or "")
    return Project(**texts, levels=_levels(table, file), avs=_avs(table, file, placed))


def _text(table: Mapping[str, Any], key: str, file: str) -> str | None:
    value = table.get(key)
    if value is not None and (not isinstance(value, str) or not value or "\0" in value):
        raise RecipeError(f"{file}: {key} is {value!r}, expected a non-empty text")
    return value


def _levels(table: Mapping[str, Any], file: str) -> tuple[str, ...] | None:
    value = table.get("levels")
    if value is None:
        return None
    texts = isinstance(value, list) and all(isinstance(level, str) and level for level in value)
    if not texts or len(set(value)) < max(2, len(value)):
        raise RecipeError(f"{file}: levels is {value!r}, expected a list of two or more texts")
    return tuple(value)


def _avs(table: Mapping[str, Any], file: str, placed: Callable[[str], str]) -> dict[str, Source]:
    avs = table.get("av", {})
    if not isinstance(avs, dict):
        raise RecipeError(f"{file}: av is {avs!r}, expected a table [av] of NAME = PATH")
    return {name: _source(name, value, file, placed) for name, value in avs.items()}


def _source(name: str, value: Any, file: str, placed: Callable[[str], str]) -> Source:
    if not _NAME.fullmatch(name):
        raise RecipeError(f"{file}: AV name {name!r}, expected letters, digits, '_', '-' or '.'")
    entry = {"path": value} if isinstance(value, str) else value
    if not isinstance(entry, dict) or not isinstance(entry.get("path"), str) or not entry["path"]:
        raise RecipeError(
            f'{file}: av.{name} is {value!r}, expected a path or {{ path = "...", kind = "..." }}'
        )
    kind = entry.get("kind", "auto")
    unknown = set(entry) - {"path", "kind"}
    if kind not in KINDS or unknown:
        raise RecipeError(
            f"{file}: av.{name} has {sorted(unknown) or f'kind {kind!r}'}, "
            f"expected path and kind (one of {', '.join(KINDS)})"
        )
    return Source(name, placed(entry["path"]), kind)
