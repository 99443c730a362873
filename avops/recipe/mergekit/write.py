"""A recipe as a mergekit config: task_arithmetic in float32, one rounding at the end."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from decimal import Decimal
from fractions import Fraction

from avops.dtypes import parse_dtype
from avops.errors import RecipeError
from avops.recipe.coefficient import exact_text, is_decimal, round_f32
from avops.recipe.mergekit.weights import LAYER
from avops.recipe.selection import Rule, RuleBook, literal, without_ranges
from avops.recipe.terms import Recipe, Term

_MAX_FILTERS = 200  # for one rule
_UNPRINTABLE = re.compile(
    "[^\\x20-\\x7e\\xa0-\\ud7ff\\ue000-\\ufffd\\U00010000-\\U0010ffff]|\\ufeff"
)


def to_mergekit(recipe: Recipe, *, dtype: str, names: Sequence[str] | None = None) -> str:
    """``recipe`` as the YAML of a mergekit config whose output has ``dtype``.

    names: the base's tensor names, needed where rules are not of the form ``*PART*``: mergekit's
    filters are parts of names. Sources of kind ``auto`` are taken for aligned checkpoints.
    Raises RecipeError for delta files, which mergekit has no word for, for no terms, and for
    rules that need names. Raises ValueError for another dtype than bf16, f16 and f32.
    """
    out = parse_dtype(dtype).torch
    deltas = [term.name for term in recipe.terms if term.source.kind == "delta"]
    if deltas:
        raise RecipeError(
            f"mergekit config: {', '.join(deltas)}: a delta file, which mergekit cannot read; give "
            "the aligned checkpoint that it was extracted from"
        )
    if not recipe.terms:
        raise RecipeError("mergekit config: the recipe has no terms, expected one or more")
    lines = [
        "merge_method: task_arithmetic",
        f"base_model: {_model(recipe.base, None)}",
        "models:",
    ]
    for term in recipe.terms:
        adapter = term.source.path if term.source.kind == "adapter" else None
        path = recipe.base if adapter else term.source.path
        lines += [f"  - model: {_model(path, adapter)}", "    parameters:"]
        lines += _weight(term, names)
    lines += ["parameters:", "  normalize: false", "dtype: float32", f"out_dtype: {out}"]
    return "\n".join(lines) + "\n"


def _model(path: str, adapter: str | None) -> str:
    """The model as YAML."""
    if adapter is None and "+" not in path:
        return _quoted(path)
    lora = "" if adapter is None else f", lora: {_quoted(adapter)}"
    return f"{{model: {_quoted(path)}{lora}}}"


def _quoted(text: str) -> str:
    """``text`` between quotes. JSON's quoting is YAML's, but for what YAML calls unprintable."""
    return _UNPRINTABLE.sub(
        lambda found: f"\\U{ord(found[0]):08X}", json.dumps(text, ensure_ascii=False)
    )


def _weight(term: Term, names: Sequence[str] | None) -> list[str]:
    if not term.rules:
        return [f"      weight: {_number(term, term.exact)}"]
    filters = _by_rules(term, names)
    if filters is None:
        if names is None:
            others = (rule.pattern for rule in term.rules if _parts(rule, None) is None)
            raise RecipeError(
                f"mergekit config: {term.name}: mergekit's filters are parts of tensor names, "
                f"which cannot say {next(others)!r}; give the base's tensor names, or rules of the "
                "form *PART*"
            )
        filters = _by_names(term, names)
    lines = ["      weight:"]
    for part, value in filters:
        lines.append(f"        - filter: {_quoted(part)}")
        lines.append(f"          value: {_number(term, value)}")
    return lines


def _by_rules(term: Term, names: Sequence[str] | None) -> list[tuple[str, Fraction]] | None:
    """The rules as filters, if each can be one: the last rule wins, but the first filter."""
    filters: list[tuple[str, Fraction]] = []
    for rule in reversed(term.rules):
        parts = _parts(rule, names)
        if parts is None:
            return None
        filters += [(part, term.exact * rule.factor) for part in parts]
        if "*" in parts:
            return filters
    return [*filters, ("*", term.exact)]


def _parts(rule: Rule, names: Sequence[str] | None) -> list[str] | None:
    """Filters that match what ``rule`` does: on any names, or on ``names``. None if none do."""
    patterns = without_ranges(rule.pattern, _MAX_FILTERS) if names is not None else [rule.pattern]
    parts = []
    for pattern in patterns:
        part = pattern.strip("*")
        if literal(f"x{part}x") != f"x{part}x":
            return None
        anywhere = pattern.startswith("*") and pattern.endswith("*")
        if not anywhere and names is None:
            return None
        if not anywhere and names is not None:
            one = Rule(pattern, rule.factor, rule.text)
            if any((part in name) != one.matches(name) for name in names):
                return None
        parts.append(part or "*")
    return parts or None


def _by_names(term: Term, names: Sequence[str]) -> list[tuple[str, Fraction]]:
    """Filters that give each of ``names`` its value: layers as a whole where possible."""
    book = RuleBook(term.rules)
    values = {}
    for name in names:
        rule = book.last(name)
        values[name] = term.exact * (rule.factor if rule else 1)
    usual = Counter(values.values()).most_common(1)[0][0] if values else term.exact
    filters, done = _layers(values, usual)
    special = [name for name in values if values[name] != usual and name not in done]
    # A filter is about longer names, too, so these come first with their own values.
    around = {name for name in values if name not in done and any(s in name for s in special)}
    filters += [(name, values[name]) for name in sorted(around, key=len, reverse=True)]
    return [*filters, ("*", usual)]


def _layers(
    values: Mapping[str, Fraction], usual: Fraction
) -> tuple[list[tuple[str, Fraction]], set[str]]:
    """Filters for layers with one value, and the names that they are about."""
    parts: dict[str, None] = {}
    for name in values:
        if layer := LAYER.match(name):
            parts[layer[0]] = None
    filters: list[tuple[str, Fraction]] = []
    done: set[str] = set()
    for part in parts:
        inside = [name for name in values if part in name]
        found = {values[name] for name in inside}
        if len(found) == 1 and found != {usual} and done.isdisjoint(inside):
            filters.append((part, values[inside[0]]))
            done.update(inside)
    return filters, done


def _number(term: Term, value: Fraction) -> str:
    """The value as a decimal that gives the same float32 in mergekit, which reads a double."""
    text = exact_text(value)
    if not is_decimal(text) or len(text) > 17:
        text = format(Decimal(repr(float(value))), "f")
    if round_f32(Fraction(float(text))) != round_f32(value):
        raise RecipeError(
            f"mergekit config: {term.name}: λ is {exact_text(value)}, which becomes another "
            "float32 through a double; round it"
        )
    return text
