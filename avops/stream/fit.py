"""Opening the alignment vectors of a merge, and refusing those that do not fit."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from avops.disk import (
    Checkpoint,
    Tensor,
    Vector,
    check_distinct,
    check_vector,
    nearest,
    open_vector,
    sidecars,
)
from avops.disk.parts import LowRank
from avops.disk.vocabulary import check_token_ids
from avops.errors import MismatchError, RecipeError
from avops.recipe import Recipe
from avops.recipe.terms import unmatched
from avops.stream.options import MergeOptions


def open_vectors(
    recipes: Sequence[Recipe], base: Checkpoint, options: MergeOptions
) -> dict[str, Vector]:
    """The alignment vectors that are not zero in all ``recipes``, by path.

    Raises RecipeError, CheckpointError or MismatchError.
    """
    _check_rules(recipes[0], base)
    shared = options.vocab == "base"
    vectors: dict[str, Vector] = {}
    for number, term in enumerate(recipes[0].terms):
        if not any(recipe.terms[number].lam for recipe in recipes):
            continue
        vector = open_vector(term.name, term.source.path, term.source.kind)
        check_vector(
            base,
            vector,
            allow_missing=options.allow_missing,
            allow_extra=options.allow_extra,
            shared_rows=shared,
        )
        if shared:
            _check_vocabulary(base, vector)
        vectors[term.source.path] = vector
    check_distinct(vectors.values())
    return vectors


def _check_rules(recipe: Recipe, base: Checkpoint) -> None:
    names = [tensor.name for tensor in base.tensors.values() if tensor.dtype.floating]
    for rule in unmatched(recipe, names):
        near = nearest(rule.pattern, names, cutoff=0.3)
        like = f"; a near name is {near!r}" if near else ""
        raise RecipeError(
            f"rule {rule}: the pattern matches none of the {len(names)} floating tensors of "
            f"{base.path}{like}; `avops inspect` lists names"
        )


def _check_vocabulary(base: Checkpoint, vector: Vector) -> None:
    """Where row counts differ, rows must be tokens, and the shared ones the same tokens."""
    shared = 0
    for name, part in vector.parts.items():
        tensor = base.tensors.get(name)
        if tensor is None or isinstance(part, LowRank) or part.tensor.shape == tensor.shape:
            continue
        if not _counts_tokens(base, tensor):
            raise MismatchError(
                f"AV {vector.name} ({vector.checkpoint.path}): tensor {name!r} has shape "
                f"{list(part.tensor.shape)}, but in the base {base.path} it has "
                f"{list(tensor.shape)}, and its rows are no tokens, so --vocab base does not "
                "apply; it belongs to another architecture or size"
            )
        shared = max(shared, min(tensor.shape[0], part.tensor.shape[0]))
    if shared:
        check_token_ids(base.directory, vector.checkpoint.directory, shared, vector.name)


def _counts_tokens(base: Checkpoint, tensor: Tensor) -> bool:
    """Whether the tensor's first dimension is the vocabulary: by config.json, else by name."""
    try:
        files, _ = sidecars(base.directory, known_only=True)
        config: Any = json.loads(files["config.json"])
        size = config.get("vocab_size") or config["text_config"]["vocab_size"]
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        size = None
    if isinstance(size, int):
        return tensor.shape[0] == size
    return any(word in tensor.name for word in ("embed", "lm_head", "wte"))
