"""What goes with an output: the recipe file and the model card. No absolute paths in either."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from avops.disk import RECIPE_NAME, Staging
from avops.recipe import Recipe, Term
from avops.stream.plan import Output
from avops.version import __version__


def shown_path(path: str | Path) -> str:
    """``path`` as it may be published: relative as given, otherwise its last name only.

    A snapshot in the hub's cache is shown as its repository: owner/name.
    """
    path = Path(path)
    for part in path.parts:
        if part.startswith("models--"):
            return part.removeprefix("models--").replace("--", "/", 1)
    if path.is_absolute() or ".." in path.parts or not path.name:
        return path.resolve().name
    return path.as_posix()


def recipe_record(
    recipe: Recipe, prints: Mapping[str, str], dtype: str | None, kinds: Mapping[str, str]
) -> dict[str, Any]:
    """The recipe as JSON-able data. prints and kinds are by path: fingerprint, delta or aligned."""
    return {
        "avops": __version__,
        "formula": "base + sum(lam * av), float32, one rounding to the output dtype",
        "base": {"path": shown_path(recipe.base), "fingerprint": prints[recipe.base]},
        "terms": [_term(term, prints, kinds) for term in recipe.terms],
        "dtype": dtype or "as the base",
        "rounding": "nearest",
    }


def _term(term: Term, prints: Mapping[str, str], kinds: Mapping[str, str]) -> dict[str, Any]:
    path = term.source.path
    return {
        "av": shown_path(term.name),
        "lam": term.text,
        "path": shown_path(path),
        "kind": kinds.get(path, "dropped, since its λ is 0"),
        "fingerprint": prints.get(path),
    }


def listing(
    record: Mapping[str, Any], outputs: Iterable[Output], small: Iterable[tuple[str, bytes]]
) -> dict[str, Any]:
    """``record`` with the names of all files of a directory: what --force may replace."""
    names = [*(output.name for output in outputs), *(name for name, _ in small), RECIPE_NAME]
    return {**record, "files": sorted(names)}


def leftover_notes(staging: Staging) -> tuple[str, ...]:
    """What killed runs left beside the output."""
    return tuple(
        f"a run that was killed left {path}; remove it when no other run is writing there"
        for path in staging.leftovers()
    )


def dump(record: Mapping[str, Any]) -> bytes:
    """``record`` as indented UTF-8 JSON."""
    return json.dumps(record, indent=2, ensure_ascii=False).encode() + b"\n"


def model_card(record: Mapping[str, Any]) -> bytes:
    """A model card (README.md) with the hub's front matter for merged models."""
    base = record["base"]["path"]
    rows = "\n".join(f"| {t['av']} | {t['lam']} | {t['kind']} |" for t in record["terms"])
    return f"""---
base_model: {json.dumps(base, ensure_ascii=False)}
tags:
- merge
- avops
---
# {base} + alignment vectors

Merged by avops {record["avops"]}: θ(λ) = θ_base + Σ λ · AV.

| alignment vector | λ | kind |
|---|---|---|
{rows}

The exact recipe is in `avops_recipe.json`.
""".encode()
