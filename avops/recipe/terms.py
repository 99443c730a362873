"""Recipes: a base and the terms added to it. Pure data; nothing here opens a file."""

from __future__ import annotations

import difflib
import posixpath
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property

from avops.errors import RecipeError
from avops.recipe.coefficient import is_decimal, parse_exact, parse_lam, parse_range, round_lam
from avops.recipe.selection import Rule, RuleBook, near_hint

KINDS = ("auto", "delta", "aligned", "adapter")


@dataclass(frozen=True)
class Source:
    """Where an alignment vector comes from.

    name: how reports call it. path: file or directory. kind: ``delta`` (stored differences),
    ``aligned`` (an aligned checkpoint, difference on the fly), ``adapter`` (a LoRA adapter), or
    ``auto`` (the file tells).
    """

    name: str
    path: str
    kind: str = "auto"


@dataclass(frozen=True)
class Term:
    """An alignment vector with its coefficient.

    lam is exactly representable in float32; text is the coefficient as it was written: a
    decimal or a ratio such as 1/3. rules scale it per tensor.
    """

    source: Source
    lam: float
    text: str
    rules: tuple[Rule, ...] = ()

    @property
    def name(self) -> str:
        """The alignment vector's name."""
        return self.source.name

    @cached_property
    def exact(self) -> Fraction:
        """The coefficient as it was written, exactly."""
        return parse_exact(self.text, self.name)

    def lam_of(self, tensor: str) -> float:
        """The coefficient on ``tensor`` in float32: scaled by the last rule that matches it.

        The product is exact and rounded once. Raises RecipeError where it is infinite.
        """
        rule = self._book.last(tensor) if self.rules else None
        if rule is None:
            return self.lam
        if rule.factor not in self._scaled:
            where = f"{self.name}: rule {rule}"
            self._scaled[rule.factor] = round_lam(self.exact * rule.factor, where)
        return self._scaled[rule.factor]

    @cached_property
    def _book(self) -> RuleBook:
        return RuleBook(self.rules)

    @cached_property
    def _scaled(self) -> dict[Fraction, float]:
        return {}

    def __str__(self) -> str:
        return f"{self.name}:{self.text}"


@dataclass(frozen=True)
class Recipe:
    """θ(λ) = θ_base + Σ λ_k · AV_k: the base's path and the terms in order."""

    base: str
    terms: tuple[Term, ...] = ()

    @property
    def active(self) -> tuple[Term, ...]:
        """The terms whose coefficient is not zero; rules may still make it zero on tensors."""
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
        if name.startswith("~"):
            hint = "~ was not replaced by the shell, as in quotes; write the path whole"
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
        name, text = split_spec(spec)
        terms.append(Term(sources.find(name), parse_lam(text, f"--av {spec}"), text))
    return distinct(terms)


def parse_sweep(
    specs: Sequence[str], sources: Sources
) -> tuple[Source, tuple[tuple[Term, ...], ...]]:
    """A sweep from texts of which exactly one has a range: ``med:-1.5:1:.1 fin:.5``.

    Returns the varying source and, per point, all terms in the order they were given.
    Raises RecipeError when not exactly one range is given.
    """
    ranges = [(i, found) for i, spec in enumerate(specs) if (found := range_of(spec))]
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
    return source, tuple(distinct([*before, term, *after]) for term in varying)


def addresses(terms: Sequence[Term]) -> dict[str, Term]:
    """The names by which terms are meant: their own, and a path's stem where it is unique."""
    stems: dict[str, list[Term]] = {}
    for term in terms:
        last = posixpath.basename(term.name.rstrip("/"))
        stems.setdefault(last.removesuffix(".safetensors"), []).append(term)
    names = {stem: found[0] for stem, found in stems.items() if stem and len(found) == 1}
    return {**names, **{term.name: term for term in terms}}


def apply_rules(
    terms: Sequence[Term], rules: Sequence[tuple[str | None, Rule]]
) -> tuple[Term, ...]:
    """``terms`` with each rule added to the alignment vector that it names, or to all of them.

    Raises RecipeError, with near names, for a name that is none of the terms'.
    """
    known = addresses(terms)
    for name, rule in rules:
        if name is not None and name not in known:
            raise RecipeError(
                f"rule {name}:{rule}: no term has this name; {near_hint(name, known)}"
            )
    return tuple(
        replace(
            term,
            rules=(
                *term.rules,
                *(rule for name, rule in rules if name is None or known[name] is term),
            ),
        )
        for term in terms
    )


def unmatched(recipe: Recipe, names: Iterable[str]) -> tuple[Rule, ...]:
    """The rules of ``recipe`` that match none of the tensor ``names``, each once, in order."""
    names = tuple(names)
    present = set(names)
    rules = dict.fromkeys(rule for term in recipe.terms for rule in term.rules)
    return tuple(
        rule
        for rule in rules
        if rule.pattern not in present
        and (rule.regex is None or not any(map(rule.regex.match, names)))
    )


def split_spec(spec: str) -> tuple[str, str]:
    """(name, λ's text) of ``NAME:λ``. Raises RecipeError for a range or no λ."""
    name, colon, text = spec.rpartition(":")
    if not colon or not name or not text:
        raise RecipeError(
            f"--av {spec}: {_missing(spec)}, expected NAME:λ such as med:-1 {_hint(spec)}"
        )
    if range_of(spec):
        raise RecipeError(
            f"--av {spec}: a range where one λ was expected; ranges belong to `avops sweep`"
        )
    return name, text


def _missing(spec: str) -> str:
    return "a λ without a name" if is_decimal(spec.removeprefix(":")) else "no λ"


def _hint(spec: str) -> str:
    """What was probably meant."""
    name, sign, text = spec.rpartition("=")
    if sign and name and is_decimal(text):
        return f"(did you mean {name}:{text}?)"
    if spec.endswith(":") or _missing(spec) != "no λ":
        return "(without a space on either side of the colon)"
    return "(every word after --av is a term; put the base before --av)"


def range_of(spec: str) -> tuple[str, str] | None:
    """(name, range) of a spec that ends in three numbers; a path may hold colons, too."""
    parts = spec.rsplit(":", 3)
    if len(parts) < 4 or not parts[0] or not all(map(is_decimal, parts[1:])):
        return None
    return parts[0], ":".join(parts[1:])


def distinct(terms: Sequence[Term]) -> tuple[Term, ...]:
    """``terms`` as a tuple. Raises RecipeError when two have the same path."""
    seen: dict[str, Term] = {}
    for term in terms:
        if term.source.path in seen:
            raise RecipeError(
                f"--av {term}: {term.name} is already given as {seen[term.source.path]}, "
                "expected each alignment vector once; add the coefficients up"
            )
        seen[term.source.path] = term
    return tuple(terms)
