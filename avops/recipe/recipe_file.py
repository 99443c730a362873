"""avops_recipe.json: what a merge recorded, as a recipe again. This module parses text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from avops.errors import RecipeError
from avops.recipe.coefficient import parse_exact, round_lam
from avops.recipe.selection import Rule, near_hint
from avops.recipe.terms import KINDS, Recipe, Source, Term

ROUNDINGS = ("nearest", "dither")
VOCABS = ("strict", "base")
AS_THE_BASE = "as the base"

# What a merge records about itself and its output; the recipe does not depend on it.
_NOTES = ("avops", "formula", "files", "measured", "notes", "versions")
_KEYS = ("base", "terms", "dtype", "rounding", "seed", "vocab", "options", *_NOTES)
_BASE_KEYS = ("path", "fingerprint")
_TERM_KEYS = ("av", "lam", "path", "kind", "fingerprint", "rules")
_RULE_KEYS = ("pattern", "factor")
_MAX_BYTES = 64 << 20
_DROPPED = "dropped"  # how the kind of a term with λ 0, whose file was not read, begins


@dataclass(frozen=True)
class FileRecord:
    """Size in bytes and XXH3-128 (hexadecimal) of an output file; None where not recorded."""

    bytes: int | None = None
    xxh3: str | None = None


@dataclass(frozen=True)
class RecipeFile:
    """A recorded recipe.

    dtype: the output dtype's tag, None for the base's. fingerprints: by path, of the base and
    the terms. files: the outputs by name. options: other choices as they were recorded.
    """

    recipe: Recipe
    dtype: str | None = None
    rounding: str = "nearest"
    seed: int | None = None
    vocab: str = "strict"
    options: Mapping[str, Any] = field(default_factory=dict)
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, FileRecord] = field(default_factory=dict)


def parse_recipe_file(text: str | bytes, file: str) -> RecipeFile:
    """The recipe in the JSON ``text``; ``file`` names it in errors.

    Raises RecipeError naming file and field for malformed JSON, an unknown key, a missing
    field, or a value of the wrong type.
    """
    if len(text) > _MAX_BYTES:
        raise RecipeError(f"{file}: {len(text)} bytes, expected a recipe of at most {_MAX_BYTES}")
    try:
        loaded = json.loads(text, object_pairs_hook=_object, parse_constant=_constant)
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"{file}: not a valid recipe in JSON: {error}") from None
    return _Reader(file).recipe_file(loaded)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        raise ValueError("a key is given twice in one object")
    return table


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


@dataclass(frozen=True)
class _Reader:
    """Reads fields; knows the file, to name it."""

    file: str

    def recipe_file(self, loaded: Any) -> RecipeFile:
        top = self.table(loaded, "the file", _KEYS)
        base = self.table(self.need(top, "base", "base"), "base", _BASE_KEYS)
        path = self.text(base, "path", "base.path")
        prints = {path: base.get("fingerprint")}
        listed = self.need(top, "terms", "terms")
        if not isinstance(listed, list):
            raise self.wrong("terms", listed, "a list")
        terms = tuple(self.term(entry, i, prints) for i, entry in enumerate(listed))
        dtype = self.text(top, "dtype", "dtype", AS_THE_BASE)
        return RecipeFile(
            recipe=Recipe(path, terms),
            dtype=None if dtype == AS_THE_BASE else dtype,
            rounding=self.choice(top, "rounding", ROUNDINGS),
            seed=self.seed(top),
            vocab=self.choice(top, "vocab", VOCABS),
            options=self.table(top.get("options", {}), "options", None),
            fingerprints={p: self.print_of(p, value) for p, value in prints.items() if value},
            files=self.files(top.get("files", [])),
        )

    def term(self, entry: Any, place: int, prints: dict[str, Any]) -> Term:
        where = f"terms[{place}]"
        table = self.table(entry, where, _TERM_KEYS)
        name = self.text(table, "av", f"{where}.av")
        path = self.text(table, "path", f"{where}.path")
        kind = self.text(table, "kind", f"{where}.kind", "auto")
        kind = "auto" if kind.startswith(_DROPPED) else kind
        if kind not in KINDS:
            raise self.wrong(f"{where}.kind", kind, f"one of {', '.join(KINDS)}")
        text = self.text(table, "lam", f"{where}.lam")
        exact = parse_exact(text, f"{self.file}: {where}.lam")
        listed = table.get("rules", [])
        if not isinstance(listed, list):
            raise self.wrong(f"{where}.rules", listed, "a list")
        rules = tuple(self.rule(rule, f"{where}.rules[{i}]") for i, rule in enumerate(listed))
        prints.setdefault(path, table.get("fingerprint"))
        lam = round_lam(exact, f"{self.file}: {where}.lam")
        return Term(Source(name, path, kind), lam, text, rules)

    def rule(self, entry: Any, where: str) -> Rule:
        table = self.table(entry, where, _RULE_KEYS)
        factor = self.text(table, "factor", f"{where}.factor")
        exact = parse_exact(factor, f"{self.file}: {where}.factor", what="the factor")
        try:
            return Rule(self.text(table, "pattern", f"{where}.pattern"), exact, factor)
        except RecipeError as error:
            raise RecipeError(f"{self.file}: {where}.pattern: {error}") from None

    def files(self, value: Any) -> dict[str, FileRecord]:
        if isinstance(value, list):  # names alone, as avops up to 0.2 wrote them
            if not all(isinstance(name, str) for name in value):
                raise self.wrong("files", value, "a list of names")
            return {name: FileRecord() for name in value}
        records = {}
        for name, entry in self.table(value, "files", None).items():
            table = self.table(entry, f"files[{name!r}]", ("bytes", "xxh3"))
            size, digest = table.get("bytes"), table.get("xxh3")
            if size is not None and (type(size) is not int or size < 0):
                raise self.wrong(f"files[{name!r}].bytes", size, "a number of bytes")
            if digest is not None and not isinstance(digest, str):
                raise self.wrong(f"files[{name!r}].xxh3", digest, "a hexadecimal text")
            records[name] = FileRecord(size, digest)
        return records

    def seed(self, table: Mapping[str, Any]) -> int | None:
        value = table.get("seed")
        if value is not None and (type(value) is not int or not 0 <= value < 1 << 64):
            raise self.wrong("seed", value, "an integer of 64 bits, 0 or more")
        return value

    def choice(self, table: Mapping[str, Any], key: str, known: tuple[str, ...]) -> str:
        value = self.text(table, key, key, known[0])
        if value not in known:
            raise self.wrong(key, value, f"one of {', '.join(known)}")
        return value

    def print_of(self, path: str, value: Any) -> str:
        if not isinstance(value, str):
            raise self.wrong(f"fingerprint of {path}", value, "a text")
        return value

    def table(self, value: Any, where: str, keys: tuple[str, ...] | None) -> dict[str, Any]:
        """``value`` as an object whose keys are all in ``keys``, if these are given."""
        if not isinstance(value, dict):
            raise self.wrong(where, value, "a JSON object")
        for key in value:
            if keys is not None and key not in keys:
                raise RecipeError(
                    f"{self.file}: unknown key {key!r} in {where}; {near_hint(key, keys)}"
                )
        return value

    def need(self, table: Mapping[str, Any], key: str, where: str) -> Any:
        if key not in table:
            raise RecipeError(
                f"{self.file}: {where} is missing; expected a recipe as avops merge writes it"
            )
        return table[key]

    def text(
        self, table: Mapping[str, Any], key: str, where: str, default: str | None = None
    ) -> str:
        value = self.need(table, key, where) if default is None else table.get(key, default)
        if not isinstance(value, str) or not value or "\0" in value:
            raise self.wrong(where, value, "a non-empty text")
        return value

    def wrong(self, where: str, value: Any, expected: str) -> RecipeError:
        shown = repr(value) if len(repr(value)) <= 80 else f"{repr(value)[:77]}..."
        return RecipeError(f"{self.file}: {where} is {shown}, expected {expected}")
