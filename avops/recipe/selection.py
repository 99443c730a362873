"""Rules: λ scaled on the tensors whose names match a pattern. Pure data."""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from avops.errors import RecipeError
from avops.recipe.coefficient import parse_exact, round_lam

# A bracket, which is kept as it is, or a range of integers that fills a name's component.
_PIECES = re.compile(r"(\[!?\]?[^\]]*\])|(?:(?<=\.)|^)([0-9]+)-([0-9]+)(?=\.|$)")
_MARK = "\ue000"  # a private character, which no tensor name and no pattern holds
_DIGITS = 6  # of the numbers of a range


@dataclass(frozen=True)
class Rule:
    """λ is multiplied by ``factor`` on tensors whose name matches ``pattern``.

    pattern: a glob on the whole name (``*``, ``?``, ``[..]`` as fnmatchcase), in which ``N-M``
    between dots matches every integer of that range: ``model.layers.0-15.*``. A name equal to
    the pattern matches, too. factor is exact; text is the factor as it was written.
    Raises RecipeError for a pattern that can match nothing.
    """

    pattern: str
    factor: Fraction
    text: str
    regex: re.Pattern[str] | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "regex", _compile(self.pattern))

    def matches(self, name: str) -> bool:
        """Whether the rule is about the tensor ``name``."""
        return name == self.pattern or (
            self.regex is not None and self.regex.match(name) is not None
        )

    def __str__(self) -> str:
        return f"{self.pattern}={self.text}"


class RuleBook:
    """Which of many rules is the last that matches a name; exact names cost one look-up."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._rules = rules
        self._exact = {rule.pattern: place for place, rule in enumerate(rules)}
        self._globs = [
            (place, rule.regex) for place, rule in enumerate(rules) if rule.regex is not None
        ][::-1]

    def last(self, name: str) -> Rule | None:
        """The last rule that matches ``name``, or None."""
        found = self._exact.get(name, -1)
        for place, regex in self._globs:
            if place <= found:
                break
            if regex.match(name):
                found = place
                break
        return self._rules[found] if found >= 0 else None


def parse_where(text: str) -> tuple[str | None, Rule]:
    """A rule from ``[AV:]GLOB=FACTOR``; without a name it is about every alignment vector.

    ``model.layers.0-15.*=0.5`` or ``med:*mlp*=0``. Raises RecipeError for another form.
    """
    left, sign, factor = text.rpartition("=")
    name, colon, pattern = left.rpartition(":")
    if not sign or not pattern or (colon and not name):
        raise RecipeError(
            f"--where {text}: expected [AV:]GLOB=FACTOR such as 'model.layers.0-15.*=0.5' "
            "or 'med:*mlp*=0'"
        )
    exact = parse_exact(factor, f"--where {text}", what="the factor")
    round_lam(exact, f"--where {text}", factor, what="the factor")
    return name or None, Rule(pattern, exact, factor)


def parse_skip(glob: str) -> Rule:
    """The rule that keeps the base's values of the tensors matching ``glob``."""
    if not glob:
        raise RecipeError("--skip: the pattern is empty, expected a glob such as '*norm*'")
    return Rule(glob, Fraction(0), "0")


def literal(name: str) -> str:
    """The pattern that matches ``name`` alone."""
    escaped = re.sub(r"([*?[])", r"[\1]", name)
    return _PIECES.sub(lambda m: m[0] if m[1] else f"{m[2]}[-]{m[3]}", escaped)


def without_ranges(pattern: str, limit: int) -> list[str]:
    """Patterns without ranges that match together what ``pattern`` does; empty beyond ``limit``."""
    patterns = [""]
    end = 0
    for piece in _PIECES.finditer(pattern):
        if piece[1] is None:
            before, end = pattern[end : piece.start()], piece.end()
            numbers = range(int(piece[2]), int(piece[3]) + 1)
            if len(patterns) * len(numbers) > limit:
                return []
            patterns = [f"{start}{before}{number}" for start in patterns for number in numbers]
    return [start + pattern[end:] for start in patterns]


def near_hint(name: str, known: Iterable[str] | Mapping[str, object]) -> str:
    """What to suggest for an unknown ``name``: near ones, otherwise all ``known`` ones."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"known names: {', '.join(known) or 'none'}"


def _compile(pattern: str) -> re.Pattern[str] | None:
    """The pattern as a regular expression, or None where only the equal name can match."""
    if _MARK in pattern:
        raise RecipeError(f"pattern {pattern!r} holds the private character U+E000")
    ranges: list[str] = []

    def piece(match: re.Match[str]) -> str:
        if match[1] is not None:
            return match[1]
        low, high = int(match[2]), int(match[3])
        if low > high or max(len(match[2]), len(match[3])) > _DIGITS:
            raise RecipeError(
                f"pattern {pattern!r}: the range {match[2]}-{match[3]} matches nothing, expected "
                f"N-M with N ≤ M of at most {_DIGITS} digits such as model.layers.0-15.*"
            )
        ranges.append("(?:" + "|".join(_integers(low, high)) + ")")
        return _MARK

    marked = _PIECES.sub(piece, pattern)
    if not ranges and not any(letter in pattern for letter in "*?["):
        return None
    parts = iter(ranges)
    mark = re.compile(re.escape(re.escape(_MARK)))
    return re.compile(mark.sub(lambda _: next(parts), fnmatch.translate(marked)))


def _integers(low: int, high: int) -> list[str]:
    """Regular expressions for the decimal integers low … high, without leading zeros."""
    found = []
    while low <= high:
        places = 0  # how many last digits are free
        while low and low % 10 ** (places + 1) == 0 and low + 10 ** (places + 1) - 1 <= high:
            places += 1
        head, first = divmod(low // 10**places, 10)
        last = min(9, first + (high - low + 1) // 10**places - 1)
        found.append(f"{head or ''}[{first}-{last}]" + "[0-9]" * places)
        low += (last - first + 1) * 10**places
    return found
