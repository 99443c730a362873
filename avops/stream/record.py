"""What goes with an output: the recipe file and the model card. No absolute paths in either."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from avops.disk import RECIPE_NAME, Staging
from avops.disk.digest import bytes_digest
from avops.kernels.effective import gains
from avops.recipe import Recipe, Term
from avops.stream.options import MergeOptions
from avops.stream.pipeline import Outcome
from avops.stream.plan import Output
from avops.version import __version__

_COMMIT = re.compile("@[0-9a-f]{40}$")
_ALLOW = ("allow_missing", "allow_extra", "allow_nonfinite")


def shown_path(path: str | Path) -> str:
    """``path`` as it may be published: relative as given, otherwise its last name only.

    A snapshot in the hub's cache is shown as its id with the commit: owner/name@sha.
    """
    path = Path(path)
    for place, part in enumerate(path.parts):
        if part.startswith("models--"):
            rest = path.parts[place + 1 :]
            commit = f"@{rest[1]}" if len(rest) > 1 and rest[0] == "snapshots" else ""
            return part.removeprefix("models--").replace("--", "/", 1) + commit
    if path.is_absolute() or ".." in path.parts or not path.name:
        return path.resolve().name
    return path.as_posix()


def recipe_record(
    recipe: Recipe, prints: Mapping[str, str], options: MergeOptions, kinds: Mapping[str, str]
) -> dict[str, Any]:
    """The recipe as JSON-able data. prints and kinds are by path: fingerprint, and kind of AV.

    A term without a kind was dropped: its λ is 0.
    """
    record: dict[str, Any] = {
        "avops": __version__,
        "formula": "base + sum(lam * av), float32, one rounding to the output dtype",
        "base": {"path": shown_path(recipe.base), "fingerprint": prints[recipe.base]},
        "terms": [_term(term, prints, kinds) for term in recipe.terms],
        "dtype": options.dtype.tag if options.dtype else "as the base",
        "rounding": options.rounding,
    }
    if options.rounding == "dither":
        record["seed"] = options.seed
    if options.vocab != "strict":
        record["vocab"] = options.vocab
    allowed = [name for name in _ALLOW if getattr(options, name)]
    if allowed:
        record["options"] = dict.fromkeys(allowed, True)
    return record


def _term(term: Term, prints: Mapping[str, str], kinds: Mapping[str, str]) -> dict[str, Any]:
    path = term.source.path
    entry: dict[str, Any] = {
        "av": shown_path(term.name),
        "lam": term.text,
        "path": shown_path(path),
        "kind": kinds.get(path, "dropped, since its λ is 0"),
        "fingerprint": prints[path] if path in kinds else None,
    }
    if term.rules:
        entry["rules"] = [{"pattern": rule.pattern, "factor": rule.text} for rule in term.rules]
    return entry


def measured(recipe: Recipe, outcome: Outcome) -> dict[str, Any]:
    """What the merge saw: elements, how many rounding left as they were, the effective λ.

    effective: per AV of the recipe, None where its λ is 0 or the sample cannot tell.
    """
    counts = outcome.counts
    found = gains(len(recipe.terms), counts.sums)
    effective = [
        None if gain is None or term.lam == 0 else float(f"{gain * term.lam:.4g}")
        for term, gain in zip(recipe.terms, found, strict=True)
    ]
    return {
        "elements": counts.elements,
        "unchanged": counts.unchanged,
        "overflowed": counts.overflowed,
        "flushed": counts.flushed,
        "effective_lam": effective,
    }


def with_files(
    record: Mapping[str, Any],
    outputs: Sequence[Output],
    digests: Sequence[str],
    small: Iterable[tuple[str, bytes]],
) -> dict[str, Any]:
    """``record`` with size and digest of every file but the recipe itself, in order of names."""
    files = {
        output.name: {"bytes": output.size, "xxh3": digest}
        for output, digest in zip(outputs, digests, strict=True)
    }
    files |= {name: {"bytes": len(data), "xxh3": bytes_digest(data)} for name, data in small}
    return {**record, "files": dict(sorted(files.items()))}


def leftover_notes(staging: Staging, *, resumable: bool = False) -> tuple[str, ...]:
    """What killed runs left beside the output."""
    how = "--resume takes it up if it is of this very merge; otherwise " if resumable else ""
    return tuple(
        f"a run that was killed left {path}; {how}remove it when no other run is writing there"
        for path in staging.leftovers()
    )


def dump(record: Mapping[str, Any]) -> bytes:
    """``record`` as indented UTF-8 JSON."""
    return json.dumps(record, indent=2, ensure_ascii=False).encode() + b"\n"


def model_card(record: Mapping[str, Any]) -> bytes:
    """A model card (README.md) with the hub's front matter for merged models."""
    base = _COMMIT.sub("", record["base"]["path"])
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

The exact recipe is in `{RECIPE_NAME}`.
""".encode()
