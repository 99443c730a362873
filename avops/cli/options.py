"""Options that several verbs share."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from avops.errors import RecipeError, UserError

if TYPE_CHECKING:
    from avops.dtypes import DType
    from avops.recipe import RecipeFile

_MAX_CONFIG = 64 << 20


def add_dtype(parser: argparse.ArgumentParser, text: str) -> None:
    """The option ``--dtype``."""
    parser.add_argument("--dtype", metavar="bf16|f16|f32", help=text)


def read_config(path: Path) -> str:
    """The text of the config file ``path``. Raises RecipeError."""
    try:
        if path.stat().st_size > _MAX_CONFIG:
            raise RecipeError(f"{path}: larger than {_MAX_CONFIG} bytes, expected a config file")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read: {error}") from None


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
