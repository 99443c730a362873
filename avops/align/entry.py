"""Entering an alignment vector in avops.toml, whose comments and layout stay as they are."""

from __future__ import annotations

import posixpath
from pathlib import Path
from typing import Any

from avops.errors import MissingExtraError, RecipeError
from avops.recipe import parse_project

FILE = "avops.toml"


def check_name(file: Path, name: str, path: str, *, force: bool = False) -> None:
    """Refuse a name that cannot be entered, before anything is trained.

    Raises RecipeError for a name that stands for another path (unless ``force``), a name of other
    characters than an alignment vector's, or a file that is no project; MissingExtraError without
    tomlkit.
    """
    _tomlkit()
    text = _read(file)
    entered(text, name, path, base=None, file=str(file), force=force)


def register(
    file: Path, name: str, path: str, *, base: str | None = None, force: bool = False
) -> bool:
    """Enter ``name = path`` under ``[av]``; False where it stands there already.

    base: written into a project that names none. Raises RecipeError, OutputError, WriteError.
    """
    from avops.disk import write_file

    before = _read(file)
    after = entered(before, name, path, base=base, file=str(file), force=force)
    if after == before:
        return False
    write_file(file, after.encode(), force=True)
    return True


def entered(text: str, name: str, path: str, *, base: str | None, file: str, force: bool) -> str:
    """The project's ``text`` with ``name = path`` in it. Raises RecipeError."""
    tomlkit = _tomlkit()
    known = parse_project(text, file=file)
    held = known.avs.get(name)
    if held is not None and _same(held.path, path):
        return text
    if held is not None and not force:
        raise RecipeError(
            f"{file}: av.{name} is {held.path!r}, expected no vector of that name or the path "
            f"{path!r}; choose another --name, or replace the entry with --force"
        )
    if base is not None and known.base is None:
        # At the very beginning: behind a table's head the key would be the table's.
        text = f"base = {tomlkit.string(base).as_string()}\n{text}"
    document = tomlkit.parse(text)
    if "av" not in document:
        if not text.endswith("\n\n"):
            document.add(tomlkit.nl())
        document.add("av", tomlkit.table())
    document["av"][name] = path
    result = str(tomlkit.dumps(document))
    checked = parse_project(result, file=file)
    if name not in checked.avs or checked.avs[name].path != path:
        raise RecipeError(
            f"{file}: {name} = {path!r} cannot be entered into its [av] table; enter it by hand"
        )
    return result


def _same(held: str, path: str) -> bool:
    return posixpath.normpath(held) == posixpath.normpath(path)


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{file}: cannot be read: {error}") from None


def _tomlkit() -> Any:
    try:
        import tomlkit
    except ModuleNotFoundError as error:
        raise MissingExtraError("tomlkit", "align", "entering a vector in avops.toml") from error
    return tomlkit
