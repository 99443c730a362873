"""The index of a sharded checkpoint: which file each tensor is in.

Names are plain: files in the index's own directory. Duplicate keys are refused, and everything
beside the weight_map may hold what it likes, in at most 1 MiB a key.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avops.disk.strict_json import JsonError, Scanner, shown, unique
from avops.errors import CheckpointError

MAX_INDEX = 100_000_000
_MAX_OTHER = 1 << 20
# NAME_MAX of every file system in use.
_MAX_FILE_NAME = 255
# A member of the weight_map without escapes, however it is indented, and its comma.
_SPACE, _TEXT = r"[ \t\n\r]*", r'"([^"\\\x00-\x1f]*)"'
_MEMBER = re.compile(_SPACE.join(("", _TEXT, ":", _TEXT, ",")))
_DECODER = json.JSONDecoder(object_pairs_hook=unique)


@dataclass(frozen=True)
class Index:
    """What an index says: the file name of every tensor, and the ``total_size`` it records."""

    weight_map: Mapping[str, str]
    total_size: Any = None


def parse_index(raw: bytes, where: Path) -> Index:
    """Parse the index ``raw``. Raises CheckpointError naming ``where``."""
    try:
        return _read(Scanner(raw, _DECODER))
    except JsonError as error:
        raise CheckpointError(
            f"{where}: not a valid index: {error}; expected JSON with a weight_map of tensor to "
            "the plain name of a .safetensors file in the same directory; download it again"
        ) from None


def _read(scanner: Scanner) -> Index:
    weight_map: dict[str, str] = {}
    total_size = None
    for key in scanner.members():
        if key != "weight_map":
            value = scanner.value(_MAX_OTHER)
            _check_encodes(key, value)
            if key == "metadata" and isinstance(value, dict):
                total_size = value.get("total_size")
        elif scanner.kind != "an object":
            raise JsonError(f"weight_map is {scanner.kind}")
        else:
            weight_map = _weight_map(scanner)
    scanner.finish()
    if not weight_map:
        raise JsonError("no tensor in a weight_map")
    return Index(weight_map, total_size)


def _weight_map(scanner: Scanner) -> dict[str, str]:
    files: dict[str, str] = {}
    known: dict[str, str] = {}
    for name, plain in scanner.plain_members(_MEMBER):
        if plain:
            file = plain[2]
        elif scanner.kind == "a text":
            file = scanner.string()
        else:
            raise JsonError(f"tensor {shown(name)} is in {scanner.kind}, expected the plain name")
        # One text object for each file, however many tensors it has, and one for each name,
        # however many checkpoints have it.
        files[sys.intern(name)] = known.get(file) or known.setdefault(file, _checked(name, file))
    return files


def _checked(name: str, file: str) -> str:
    plain = file.endswith(".safetensors") and "/" not in file and "\\" not in file
    if not plain or not file.isprintable() or len(file.encode()) > _MAX_FILE_NAME:
        raise JsonError(f"tensor {shown(name)} is in {shown(file)}, expected the plain name")
    return file


def _check_encodes(key: str, value: object) -> None:
    # A merged index repeats it, in UTF-8.
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise JsonError(f"{shown(key)} holds text that is not valid Unicode") from None
