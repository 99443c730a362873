"""Coefficients: what ``set`` was given, exactly, and λ of every dial on every tensor in float32."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from decimal import Decimal
from fractions import Fraction

import numpy as np

from avops.errors import RecipeError
from avops.recipe import Recipe, Source, Term, apply_rules, parse_skip, parse_where, unmatched
from avops.recipe.coefficient import parse_exact, round_lam
from avops.recipe.selection import Rule, RuleBook

# What a coefficient may be given as. Text and exact numbers are taken as they are.
Lam = float | str | Decimal | Fraction


class Dials:
    """The dials, in order, with the factors that rules put on tensors.

    names: of the dials. tensors: the names of all floating tensors of the base, whose path is
    ``where``. Raises RecipeError for rules that name no dial, match no tensor or are malformed.
    """

    def __init__(
        self,
        names: Sequence[str],
        rules: Sequence[tuple[str | None, Rule]],
        tensors: Sequence[str],
        where: str,
    ) -> None:
        self.names = tuple(names)
        terms = tuple(Term(Source(name, name), 1.0, "1") for name in self.names)
        if rules and not terms:
            raise RecipeError(f"rule {rules[0][1]}: there are no dials that it could be about")
        terms = apply_rules(terms, rules)
        _check_matched(terms, tensors, where)
        self._books = [RuleBook(term.rules) if term.rules else None for term in terms]
        self._factors: list[list[Fraction | None]] = []
        self._count = 0

    def place(self, tensors: Sequence[str]) -> None:
        """Fix the tensors that ``rows`` is about, and their order."""
        self._count = len(tensors)
        self._factors = [[self.factor(k, name) for name in tensors] for k in range(len(self.names))]

    def factor(self, dial: int, tensor: str) -> Fraction | None:
        """What rules multiply λ of ``dial`` by on ``tensor``; None: they say nothing."""
        book = self._books[dial]
        rule = book.last(tensor) if book is not None else None
        return rule.factor if rule is not None else None

    def exact(self, lams: Mapping[str, Lam]) -> dict[str, Fraction]:
        """The coefficient of every dial; 0 where ``lams`` does not name it.

        Raises RecipeError for an unknown dial or a λ that float32 does not hold.
        """
        for name in lams:
            if name not in self.names:
                known = ", ".join(self.names) or "none: Knobs was given no alignment vectors"
                raise RecipeError(f"no dial {name!r}, expected one of {known}")
        return {name: _exact(name, lams.get(name, 0.0)) for name in self.names}

    def rows(self, exact: Mapping[str, Fraction]) -> np.ndarray:
        """λ in float32, [tensors, dials]: as `avops merge` takes them for the same recipe."""
        rows = np.zeros((self._count, len(self.names)), np.float32)
        for dial, (name, factors) in enumerate(zip(self.names, self._factors, strict=True)):
            lam = round_lam(exact[name], f"dial {name}")
            if not lam:  # Such a term is dropped, whatever its rules say.
                continue
            scaled: dict[Fraction | None, float] = {None: lam}
            for factor in set(factors) - {None}:
                assert factor is not None
                scaled[factor] = round_lam(exact[name] * factor, f"dial {name} times {factor}")
            rows[:, dial] = [scaled[factor] for factor in factors]
        return rows


def parse_rules(where: Sequence[str], skip: Sequence[str]) -> tuple[tuple[str | None, Rule], ...]:
    """Rules as `avops merge` reads ``--where`` and ``--skip``. Raises RecipeError."""
    return (*map(parse_where, where), *((None, parse_skip(glob)) for glob in skip))


def shown(exact: Mapping[str, Fraction]) -> dict[str, float]:
    """The float32 coefficients."""
    return {name: round_lam(value, f"dial {name}") for name, value in exact.items()}


def _exact(name: str, value: Lam) -> Fraction:
    try:
        if isinstance(value, str):
            found = parse_exact(value, name)
        elif isinstance(value, (Decimal, Fraction)):
            found = parse_exact(str(value), name)
        else:
            number = float(value)
            if not math.isfinite(number):
                raise OverflowError
            found = parse_exact(repr(number), name)
        round_lam(found, name)
    except (TypeError, ValueError, OverflowError, RecipeError):
        raise RecipeError(
            f"dial {name}: λ is {value!r}, expected a number that is finite in float32"
        ) from None
    return found


def _check_matched(terms: tuple[Term, ...], tensors: Sequence[str], where: str) -> None:
    for rule in unmatched(Recipe(where, terms), tensors):
        near = difflib.get_close_matches(rule.pattern, tensors, n=1, cutoff=0.3)
        like = f"; a near name is {near[0]!r}" if near else ""
        raise RecipeError(
            f"rule {rule}: the pattern matches none of the {len(tensors)} floating tensors of "
            f"{where}{like}; `avops inspect` lists names"
        )
