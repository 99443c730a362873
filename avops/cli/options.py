"""Options that several verbs share."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from avops.errors import UserError

if TYPE_CHECKING:
    from avops.dtypes import DType


def add_dtype(parser: argparse.ArgumentParser, text: str) -> None:
    """The option ``--dtype``."""
    parser.add_argument("--dtype", metavar="bf16|f16|f32", help=text)


def dtype_of(args: argparse.Namespace) -> DType | None:
    """The dtype given with ``--dtype``. Raises UserError for an unknown one."""
    from avops.dtypes import parse_dtype

    if args.dtype is None:
        return None
    try:
        return parse_dtype(args.dtype)
    except ValueError as error:
        raise UserError(f"--dtype: {error}") from None
