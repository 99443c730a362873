"""Recipes: a base and the terms added to it. Pure data; nothing here opens a file."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from avops.errors import RecipeError
from avops.recipe.coefficient import is_decimal, parse_lam, parse_range

KINDS = ("auto", "delta", "aligned")


@dataclass(frozen=True)
class Source:
    """Where an alignment vector comes from.

    name: how reports call it. path: file or directory. kind: ``delta`` (stored differences),
    ``aligned`` (an aligned checkpoint, difference on the fly), or ``auto`` (the file tells).
    """

    name: str
    path: str
    kind: str = "auto"


@dataclass(frozen=True)
class Term:
    """An alignment vector with its coefficient.

    lam is exactly representable in float32; text is the coefficient as it was written.
    """

    source: Source
    lam: float
    text: str

    @property
    def name(self) -> str:
        """The alignment vector's name."""
        return self.source.name

    def __str__(self) -> str:
        return f"{self.name}:{self.text}"


@dataclass(frozen=True)
class Recipe:
    """θ(λ) = θ_base + Σ λ_k · AV_k: the base's path and the terms in order."""

    base: str
    terms: tuple[Term, ...] = ()

    @property
    def active(self) -> tuple[Term, ...]:
        """The terms whose coefficient is not zero."""
        return tuple(term for term in self.terms if term.lam != 0)

    def __str__(self) -> str:
        return " ".join(map(str, self.terms)) or "base"


@dataclass(frozen=True)
class Sources:
    """How names become alignment vectors: the project's table first, then existing paths."""

    named: Mapping[str, Source] = field(default_factory=dict)
    exists: Callable[[str], bool] = field(default=lambda _: False)

    def find(self, name: str) -> Source:
        """The source called ``name``. Raises RecipeError with near names."""
        if name in self.named:
            return self.named[name]
        if self.exists(name):
            return Source(name=name, path=name)
        near = difflib.get_close_matches(name, self.named, n=3, cutoff=0.5)
        known = ", ".join(self.named) or "none: there is no [av] table in avops.toml here"
        hint = f"did you mean {' or '.join(near)}?" if near else f"known names: {known}"
        raise RecipeError(
            f"--av {name}: no alignment vector has this name and no file or directory this path; "
            f"{hint}"
        )


def parse_terms(specs: Iterable[str], sources: Sources) -> tuple[Term, ...]:
    """Terms from texts such as ``med:-1`` or ``path/to/aligned:-0.4``.

    Raises RecipeError for an unknown name, a bad coefficient, or a name given twice.
    """
    terms = []
    for spec in specs:
        name, text = _split(spec)
        terms.append(Term(sources.find(name), parse_lam(text, f"--av {spec}"), text))
    return _distinct(terms)


def parse_sweep(
    specs: Sequence[str], sources: Sources
) -> tuple[Source, tuple[tuple[Term, ...], ...]]:
    """A sweep from texts of which exactly one has a range: ``med:-1.5:1:.1 fin:.5``.

    Returns the varying source and, per point, all terms in the order they were given.
    Raises RecipeError when not exactly one range is given.
    """
    ranges = [(i, found) for i, spec in enumerate(specs) if (found := _range_of(spec))]
    if len(ranges) != 1:
        raise RecipeError(
            f"--av {' '.join(specs)}: {len(ranges)} ranges, expected exactly one term "
            "NAME:START:STOP:STEP such as med:-1.5:1:.1; other terms keep one λ"
        )
    place, (name, points) = ranges[0]
    where = f"--av {specs[place]}"
    source = sources.find(name)
    before = parse_terms(specs[:place], sources)
    after = parse_terms(specs[place + 1 :], sources)
    varying = [Term(source, parse_lam(text, where), text) for text in parse_range(points, where)]
    return source, tuple(_distinct([*before, term, *after]) for term in varying)


def _split(spec: str) -> tuple[str, str]:
    name, colon, text = spec.rpartition(":")
    if not colon or not name or not text:
        raise RecipeError(
            f"--av {spec}: no λ, expected NAME:λ such as med:-1 "
            "(every word after --av is a term; put the base before --av)"
        )
    if _range_of(spec):
        raise RecipeError(
            f"--av {spec}: a range where one λ was expected; ranges belong to `avops sweep`"
        )
    return name, text


def _range_of(spec: str) -> tuple[str, str] | None:
    """(name, range) of a spec that ends in three numbers; a path may hold colons, too."""
    parts = spec.rsplit(":", 3)
    if len(parts) < 4 or not parts[0] or not all(map(is_decimal, parts[1:])):
        return None
    return parts[0], ":".join(parts[1:])


def _distinct(terms: Sequence[Term]) -> tuple[Term, ...]:
    seen: dict[str, Term] = {}
    for term in terms:
        if term.source.path in seen:
            raise RecipeError(
                f"--av {term}: {term.name} is already given as {seen[term.source.path]}, "
                "expected each alignment vector once; add the coefficients up"
            )
        seen[term.source.path] = term
    return tuple(terms)
