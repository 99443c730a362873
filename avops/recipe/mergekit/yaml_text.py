"""YAML text to plain data: safe tags only, bounded size, no duplicate keys, no merge keys."""

from __future__ import annotations

import importlib
from typing import Any

from avops.errors import MissingExtraError, RecipeError

_MAX_BYTES = 1 << 20
_MAX_NODES = 100_000  # with aliases expanded


def load_yaml(text: str, file: str) -> Any:
    """The data of the one YAML document ``text``; ``file`` names it in errors.

    Raises RecipeError for text that is not YAML, has duplicate or merge keys, or is too large,
    and MissingExtraError without PyYAML.
    """
    try:
        yaml: Any = importlib.import_module("yaml")
    except ImportError:
        raise MissingExtraError("PyYAML", "yaml", f"reading {file}") from None
    size = len(text.encode("utf-8", "surrogatepass"))
    if size > _MAX_BYTES:
        raise RecipeError(f"{file}: {size} bytes of YAML, expected at most {_MAX_BYTES}")
    try:
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _Checks(yaml, file).expanded(node, ())
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except (yaml.YAMLError, ValueError) as error:
        problem = " ".join(str(error).split())
        raise RecipeError(f"{file}: not valid YAML: {problem}") from None
    except RecursionError:
        raise RecipeError(f"{file}: not valid YAML: nested too deeply") from None


class _Checks:
    """Walks the nodes once; a shared node is counted each time it is used."""

    def __init__(self, yaml: Any, file: str) -> None:
        self._yaml, self._file = yaml, file
        self._sizes: dict[int, int] = {}

    def expanded(self, node: Any, above: tuple[int, ...]) -> int:
        """The number of nodes below ``node``, as if each alias were written out."""
        if id(node) in above:
            raise RecipeError(f"{self._file}: line {_line(node)}: an alias contains itself")
        if id(node) in self._sizes:
            return self._sizes[id(node)]
        path = (*above, id(node))
        if isinstance(node, self._yaml.MappingNode):
            self._keys(node)
            below = [child for pair in node.value for child in pair]
        else:
            below = node.value if isinstance(node, self._yaml.SequenceNode) else []
        size = 1 + sum(self.expanded(child, path) for child in below)
        if size > _MAX_NODES:
            raise RecipeError(
                f"{self._file}: line {_line(node)}: more than {_MAX_NODES} values when its "
                "aliases are written out"
            )
        self._sizes[id(node)] = size
        return size

    def _keys(self, node: Any) -> None:
        seen: set[str] = set()
        for key, _ in node.value:
            where = f"{self._file}: line {_line(key)}"
            if key.tag == "tag:yaml.org,2002:merge":
                raise RecipeError(f"{where}: merge keys (<<) are not read; write the values out")
            if key.tag != "tag:yaml.org,2002:str":
                raise RecipeError(f"{where}: a key is not a text")
            if key.value in seen:
                raise RecipeError(f"{where}: the key {key.value!r} is given twice")
            seen.add(key.value)


def _line(node: Any) -> int:
    return int(node.start_mark.line) + 1
