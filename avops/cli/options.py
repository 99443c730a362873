"""Options that several verbs share."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from avops.errors import RecipeError, UserError

if TYPE_CHECKING:
    from avops.dtypes import DType
    from avops.recipe import RecipeFile, Source

_MAX_CONFIG = 64 << 20


class Rules(TypedDict):
    """Rules per tensor, as they were written."""

    where: tuple[str, ...]
    skip: tuple[str, ...]


def add_dtype(parser: argparse.ArgumentParser | argparse._ArgumentGroup, text: str) -> None:
    """The option ``--dtype``."""
    parser.add_argument("--dtype", metavar="bf16|f16|f32", help=text)


def add_rules(parser: argparse.ArgumentParser) -> None:
    """The options ``--where`` and ``--skip``, as `avops merge` has them."""
    parser.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="[AV:]GLOB=FACTOR",
        help="scale λ on tensors by name; N-M matches numbers: 'model.layers.0-15.*=0.5'; the "
        "last match counts",
    )
    parser.add_argument(
        "--skip",
        action="append",
        default=[],
        metavar="GLOB",
        help="keep the base's values of these tensors",
    )


def rules_of(args: argparse.Namespace, sources: Sequence[Source]) -> Rules:
    """``--where`` and ``--skip``, read; empty for verbs that lack them.

    Raises RecipeError for one that is none, UserError where no alignment vector could follow them.
    """
    from avops.recipe import parse_skip, parse_where

    where, skip = (tuple(getattr(args, name, ())) for name in ("where", "skip"))
    for text in where:
        parse_where(text)
    for text in skip:
        parse_skip(text)
    if not sources and (where or skip):
        raise UserError(
            f"{'--where' if where else '--skip'} {(where or skip)[0]}: there is no alignment "
            "vector whose λ it could scale; give some with --av"
        )
    return {"where": where, "skip": skip}


def read_config(path: Path) -> str:
    """The text of the config file ``path``. Raises RecipeError."""
    try:
        if path.stat().st_size > _MAX_CONFIG:
            raise RecipeError(f"{path}: larger than {_MAX_CONFIG} bytes, expected a config file")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: not UTF-8: {error}; save it as UTF-8") from None


def read_recipe(path: Path) -> RecipeFile:
    """The recorded recipe in the file ``path``. Raises RecipeError."""
    from avops.recipe import parse_recipe_file

    return parse_recipe_file(read_config(path), str(path))


def dtype_of(args: argparse.Namespace) -> DType | None:
    """The dtype given with ``--dtype``. Raises UserError for an unknown one."""
    from avops.dtypes import parse_dtype

    if args.dtype is None:
        return None
    try:
        return parse_dtype(args.dtype)
    except ValueError as error:
        raise UserError(f"--dtype: {error}") from None
