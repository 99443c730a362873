"""The index of a sharded checkpoint: which file each tensor is in.

Names are plain: files in the index's own directory. Duplicate keys are refused, and everything
beside the weight_map may hold what it likes, in at most 1 MiB a key.
"""

from __future__ import annotations

import json
from pathlib import Path

from avops.disk.strict_json import JsonError, Scanner, shown, unique
from avops.errors import CheckpointError

MAX_INDEX = 100_000_000
_MAX_OTHER = 1 << 20
# NAME_MAX of every file system in use.
_MAX_FILE_NAME = 255
_DECODER = json.JSONDecoder(object_pairs_hook=unique)


def parse_index(raw: bytes, where: Path) -> dict[str, str]:
    """The file name of every tensor. Raises CheckpointError naming ``where``."""
    try:
        return _read(Scanner(raw, _DECODER))
    except JsonError as error:
        raise CheckpointError(
            f"{where}: not a valid index: {error}; expected JSON with a weight_map of tensor to "
            "the plain name of a .safetensors file in the same directory; download it again"
        ) from None


def _read(scanner: Scanner) -> dict[str, str]:
    weight_map: dict[str, str] = {}
    for key in scanner.members():
        if key != "weight_map":
            _check_encodes(key, scanner.value(_MAX_OTHER))
        elif scanner.kind != "an object":
            raise JsonError(f"weight_map is {scanner.kind}")
        else:
            weight_map = _weight_map(scanner)
    scanner.finish()
    if not weight_map:
        raise JsonError("no tensor in a weight_map")
    return weight_map


def _weight_map(scanner: Scanner) -> dict[str, str]:
    files: dict[str, str] = {}
    known: dict[str, str] = {}
    for name in scanner.members():
        if scanner.kind != "a text":
            raise JsonError(f"tensor {shown(name)} is in {scanner.kind}, expected the plain name")
        file = scanner.string()
        # One text object for each file, however many tensors it has.
        files[name] = known.get(file) or known.setdefault(file, _checked(name, file))
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
