"""Several recipes at once: lists of coefficients, and the names of what they give."""

from __future__ import annotations

import itertools
import math
import posixpath
import string
from collections.abc import Sequence

from avops.errors import RecipeError
from avops.recipe.coefficient import is_decimal, parse_lam, parse_range, plain_text
from avops.recipe.selection import near_hint
from avops.recipe.terms import Sources, Term, addresses, distinct, range_of, split_spec

MAX_CANDIDATES = 1000


def parse_candidates(specs: Sequence[str], sources: Sources) -> tuple[tuple[Term, ...], ...]:
    """The terms of every candidate, from texts such as ``med:-1,-.5,0`` and ``fin:-1:1:.5``.

    Lists and ranges may stand in several terms: every combination is a candidate, the last
    term varies fastest. Without any there is one candidate. Raises RecipeError for what
    ``parse_terms`` refuses, a value twice in a list, and more than 1,000 candidates.
    """
    axes = [_axis(spec, sources) for spec in specs]
    count = math.prod(map(len, axes))
    if count > MAX_CANDIDATES:
        raise RecipeError(
            f"--av {' '.join(specs)}: {count} candidates, expected at most {MAX_CANDIDATES}; "
            "give fewer values"
        )
    distinct([axis[0] for axis in axes])
    return tuple(itertools.product(*axes))


def is_template(path: str) -> bool:
    """Whether ``path`` has a field such as ``{med}``."""
    return any(field is not None for _, field in _pieces(path))


def expand_template(template: str, terms: Sequence[Term]) -> str:
    """``template`` with each ``{AV}`` replaced by the AV's λ as a plain decimal.

    An AV given by its path goes by the stem of the path's last component. ``{{`` and ``}}`` are
    braces. Raises RecipeError for an unknown field and for braces that do not pair.
    """
    known = addresses(terms)
    found = []
    for literal, field in _pieces(template):
        found.append(literal)
        if field is None:
            continue
        if field not in known:
            raise RecipeError(
                f"output {template!r}: no term is called {field!r}; {near_hint(field, known)}; "
                "write {{ and }} for braces"
            )
        found.append(_lam_text(template, known[field]))
    return "".join(found)


def expand_candidates(template: str, candidates: Sequence[Sequence[Term]]) -> tuple[str, ...]:
    """One output path per candidate, all different.

    Raises RecipeError when a term that varies is not in the template, or paths coincide.
    """
    if len(candidates) > 1:
        fields = {field for _, field in _pieces(template) if field is not None}
        known = addresses(candidates[0])
        used = {known[field].name for field in fields if field in known}
        varying = [
            terms[0].name
            for terms in zip(*candidates, strict=True)
            if len({term.lam for term in terms}) > 1
        ]
        short = {term.name: name for name, term in reversed(known.items()) if "/" not in name}
        missing = [f"{{{short.get(name, name)}}}" for name in varying if name not in used]
        if missing:
            raise RecipeError(
                f"output {template!r}: {len(candidates)} candidates need {len(candidates)} paths, "
                f"and {', '.join(missing)} is not in the template; expected such as "
                f"{_with_fields(template, missing)!r}"
                " (a comma separates several λ; decimals have a point)"
            )
    paths = tuple(expand_template(template, terms) for terms in candidates)
    seen: dict[str, int] = {}
    for place, path in enumerate(paths):
        first = seen.setdefault(posixpath.normpath(path), place)
        if first != place:
            both = (" ".join(map(str, candidates[i])) for i in (first, place))
            raise RecipeError(
                f"output {template!r}: {' and '.join(both)} both give {path!r}, "
                "expected one path for each candidate"
            )
    return paths


def _axis(spec: str, sources: Sources) -> list[Term]:
    """The term ``spec`` with each of its values."""
    where = f"--av {spec}"
    if found := range_of(spec):
        name, text = found
        texts = parse_range(text, where)
    else:
        name, text = split_spec(spec)
        texts = tuple(text.split(","))
    source = sources.find(name)
    terms: dict[float, Term] = {}
    for text in texts:
        lam = parse_lam(text, where)
        if lam in terms:
            raise RecipeError(
                f"{where}: {text} and {terms[lam].text} are the same λ in float32, "
                "expected each value once"
            )
        terms[lam] = Term(source, lam, text)
    return list(terms.values())


def _with_fields(template: str, fields: Sequence[str]) -> str:
    """``template`` with ``fields`` before its suffix."""
    stem, dot, suffix = template.rpartition(".safetensors")
    start, end = (stem, dot) if dot and not suffix else (template.rstrip("/"), "")
    return f"{start}-{'-'.join(fields)}{end}"


def _pieces(template: str) -> list[tuple[str, str | None]]:
    """The template as pairs of literal text and the field after it, or None."""
    try:
        pieces = list(string.Formatter().parse(template))
    except ValueError:
        raise RecipeError(
            f"output {template!r}: braces do not pair; write {{{{ and }}}} for braces"
        ) from None
    for _, field, spec, conversion in pieces:
        if field is not None and (not field or spec or conversion):
            raise RecipeError(
                f"output {template!r}: expected only the name of a term between braces, "
                "such as {med}"
            )
    return [(literal, field) for literal, field, _, _ in pieces]


def _lam_text(template: str, term: Term) -> str:
    if not is_decimal(term.text):
        raise RecipeError(
            f"output {template!r}: λ of {term.name} is {term.text}, expected a decimal number "
            "to name a file after"
        )
    return plain_text(term.text)
