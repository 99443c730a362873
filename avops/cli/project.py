"""Finding things by name: avops.toml in the current directory, and arguments that win over it."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path

from avops.cli import hub
from avops.errors import RecipeError, UserError
from avops.recipe import Project, Sources, Term, parse_project

FILE = "avops.toml"


_INSTEAD: ContextVar[Project | None] = ContextVar("instead", default=None)


@contextmanager
def instead(found: Project) -> Iterator[None]:
    """``found`` in place of avops.toml, for a verb that calls another one."""
    token = _INSTEAD.set(found)
    try:
        yield
    finally:
        _INSTEAD.reset(token)


def load_project() -> Project:
    """The project in the current directory, or an empty one."""
    if (told := _INSTEAD.get()) is not None:
        return told
    path = Path(FILE)
    try:
        text = path.read_text(encoding="utf-8-sig")  # some editors write a mark before the text
    except FileNotFoundError:
        return Project()
    except OSError as error:
        raise RecipeError(f"{FILE}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise RecipeError(f"{FILE}: not UTF-8: {error}; save it as UTF-8") from None
    return parse_project(text, file=FILE, home=os.path.expanduser("~"))


def sources(project: Project) -> Sources:
    """How ``--av`` names are found: avops.toml's, then paths, then ids on the Hugging Face hub."""
    from avops.disk.hub import is_hub_id

    return Sources(project.avs, lambda name: _may_exist(name) or is_hub_id(name))


def _may_exist(path: str) -> bool:
    """Whether ``path`` exists, or cannot be seen: opening it then says why."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    except OSError:
        return True
    return True


def located_terms(terms: Sequence[Term], *, quiet: bool = False) -> tuple[Term, ...]:
    """``terms`` with the paths of their files, where these are ids on the hub."""
    return tuple(
        replace(term, source=replace(term.source, path=hub.local(term.source.path, quiet=quiet)))
        for term in terms
    )


def base_of(given: str | None, project: Project) -> str:
    """The base checkpoint's path or hub id: the argument, or avops.toml's."""
    base = given or project.base
    if base is None:
        raise UserError(
            f"no BASE given and none in {FILE}; expected a checkpoint: a .safetensors file or a "
            "directory"
        )
    return base


def terms_of(groups: list[list[str]] | None) -> list[str]:
    """``--av A B --av C`` as one list."""
    return [spec for group in groups or [] for spec in group]


def add_base(parser: argparse.ArgumentParser) -> None:
    """The argument BASE, which avops.toml may give."""
    parser.add_argument(
        "base",
        nargs="?",
        metavar="BASE",
        help=f"checkpoint: file, directory or hub id (default: {FILE}'s)",
    )


def add_av(parser: argparse.ArgumentParser, text: str, *, required: bool = False) -> None:
    """The option ``--av``, repeatable, taking any number of terms."""
    parser.add_argument(
        "--av", nargs="+", action="append", metavar="NAME:λ", help=text, required=required
    )
