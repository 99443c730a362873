"""Parameters of mergekit: scalars, gradients over the layers, and filters by tensor name.

A filter is a part of the tensor's name; the first condition that matches gives the value. A
gradient is a list of values spread evenly over the layers, from t = 0 at the first to t = 1 at
the last: numbers are interpolated between neighbours, truth values are not.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from avops.errors import RecipeError
from avops.recipe.coefficient import parse_exact
from avops.recipe.selection import near_hint

NUMBERS = ("weight", "lambda")
TRUTHS = ("normalize",)
# Parameters of mergekit that change nothing in task_arithmetic and linear.
INERT = ("density", "gamma", "epsilon", "int8_mask", "rescale")

_TRUE = (True, "true", "t", "yes", "y", "on", "1")
_FALSE = (False, "false", "f", "no", "n", "off", "0")


@dataclass(frozen=True)
class Condition:
    """Values for the tensors whose name holds ``filter``; None is for all tensors."""

    filter: str | None
    values: tuple[Fraction, ...]
    stepped: bool = False

    def matches(self, tensor: str) -> bool:
        """Whether the condition is about ``tensor``."""
        return self.filter is None or self.filter == "*" or self.filter in tensor

    def at(self, t: Fraction) -> Fraction | None:
        """The value at ``t`` from 0 to 1, None when no value is given."""
        last = len(self.values) - 1
        if last < 0:
            return None
        if self.stepped:
            return self.values[int(float(t) * last)]  # in doubles, since a step hangs on it
        low = math.floor(t * last)
        part = t * last - low
        return (1 - part) * self.values[low] + part * self.values[min(last, low + 1)]


@dataclass(frozen=True)
class Setting:
    """One parameter as it was given: its conditions in order."""

    conditions: tuple[Condition, ...]

    def at(self, tensor: str, t: Fraction) -> Fraction | None:
        """The value on ``tensor`` at ``t``, None when the setting says nothing about it."""
        for condition in self.conditions:
            if condition.matches(tensor):
                return condition.at(t)
        return None

    @property
    def varies(self) -> bool:
        """Whether a gradient makes the value depend on the layer."""
        return any(len(set(condition.values)) > 1 for condition in self.conditions)


Settings = Mapping[str, Setting]


def resolve(name: str, scopes: Iterable[Settings], tensor: str, t: Fraction) -> Fraction | None:
    """The parameter ``name`` on ``tensor``: from the first of ``scopes`` that gives a value."""
    for scope in scopes:
        if name in scope:
            value = scope[name].at(tensor, t)
            if value is not None:
                return value
    return None


def parse_settings(
    value: Any, where: str, allowed: Sequence[str]
) -> tuple[dict[str, Setting], list[str]]:
    """The table ``parameters`` as settings, and notes about what has no effect there.

    Raises RecipeError naming ``where`` for an unknown parameter or a malformed value.
    """
    if value is None:
        return {}, []
    if not isinstance(value, dict):
        raise RecipeError(f"{where} is {shown(value)}, expected a table of parameters")
    settings, notes = {}, []
    for name, given in value.items():
        if name in allowed:
            settings[name] = _setting(given, f"{where}.{name}", name in TRUTHS)
        elif name in (*NUMBERS, *TRUTHS):
            notes.append(f"{where}.{name} has no effect there, in mergekit neither")
        elif name in INERT:
            notes.append(f"{where}.{name} has no effect in this method, in mergekit neither")
        else:
            hint = near_hint(str(name), allowed)
            raise RecipeError(f"{where}: unknown parameter {shown(name)}; {hint}")
    return settings, notes


def shown(value: Any) -> str:
    """``value`` for a message, shortened."""
    try:
        text = repr(value)
    except ValueError:  # an integer of more digits than Python prints
        text = "a number of thousands of digits"
    return text if len(text) <= 60 else f"{text[:57]}..."


def _setting(value: Any, where: str, truth: bool) -> Setting:
    if isinstance(value, dict):
        value = [value]
    if isinstance(value, list) and any(isinstance(entry, dict) for entry in value):
        return Setting(
            tuple(_condition(entry, f"{where}[{i}]", truth) for i, entry in enumerate(value))
        )
    return Setting((Condition(None, _values(value, where, truth), truth),) if value != [] else ())


def _condition(value: Any, where: str, truth: bool) -> Condition:
    if not isinstance(value, dict):
        raise RecipeError(
            f"{where} is {shown(value)}, expected filter and value as in the other entries"
        )
    unknown = sorted(map(str, set(value) - {"filter", "value"}))
    if unknown or "value" not in value:
        wrong = f"unknown key {unknown[0]!r}" if unknown else "value is missing"
        raise RecipeError(f"{where}: {wrong}, expected filter and value")
    part = value.get("filter")
    if part is not None and not isinstance(part, str):
        raise RecipeError(f"{where}.filter is {shown(part)}, expected a part of a tensor's name")
    return Condition(part, _values(value["value"], f"{where}.value", truth), truth)


def _values(value: Any, where: str, truth: bool) -> tuple[Fraction, ...]:
    entries = value if isinstance(value, list) else [value]
    read = _truth if truth else _number
    return tuple(read(entry, where) for entry in entries)


def _number(value: Any, where: str) -> Fraction:
    if isinstance(value, bool):
        return Fraction(value)
    if isinstance(value, (int, float)) and abs(value) < 1e40:
        # The shortest decimal that gives this double is the one that was written.
        return parse_exact(repr(value), where, what="the number")
    if isinstance(value, str) and "/" not in value:  # YAML reads 1e-3, without a dot, as a text
        return parse_exact(value.strip(), where, what="the number")
    raise RecipeError(f"{where} is {shown(value)}, expected a number, or a list of numbers")


def _truth(value: Any, where: str) -> Fraction:
    if isinstance(value, str):
        value = value.lower()
    if isinstance(value, (bool, int, str)) and value in (*_TRUE, *_FALSE):
        return Fraction(value in _TRUE)
    raise RecipeError(f"{where} is {shown(value)}, expected true or false, or a list of these")
