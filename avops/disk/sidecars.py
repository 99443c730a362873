"""Sidecars: the small files that make a directory of weights a model.

Config, generation config, tokenizer, chat template and remote code are copied byte for byte.
Weights, nested directories, and files over 64 MiB are not sidecars.
"""

from __future__ import annotations

import json
from pathlib import Path

from avops.disk.staging import RECIPE_NAME
from avops.dtypes import DType
from avops.errors import CheckpointError

_SUFFIXES = {".json", ".txt", ".model", ".jinja", ".py", ".tiktoken", ".md"}
_NEVER = {RECIPE_NAME, "README.md"}
_MAX_SIZE = 64 << 20
# Beside a single file anything may lie, so only the names that transformers reads are taken.
_KNOWN = {
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "config.json",
    "generation_config.json",
    "merges.txt",
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
}


def sidecars(directory: Path, *, known_only: bool) -> dict[str, bytes]:
    """Sidecar files of ``directory`` by name. Raises CheckpointError when one is unreadable."""
    found = {}
    for path in sorted(directory.iterdir()):
        named = path.name in _KNOWN
        wanted = named or (not known_only and _is_sidecar(path))
        if not wanted or path.name in _NEVER or not path.is_file():
            continue
        try:
            if path.stat().st_size <= _MAX_SIZE:
                found[path.name] = path.read_bytes()
        except OSError as error:
            raise CheckpointError(f"{path}: cannot copy the sidecar: {error.strerror}") from None
    return found


def _is_sidecar(path: Path) -> bool:
    if path.name.endswith(".index.json") or path.name.startswith("."):
        return False
    return path.suffix in _SUFFIXES or path.stem.upper() in ("LICENSE", "NOTICE", "USE_POLICY")


def patch_config(raw: bytes, dtype: DType, where: str) -> bytes:
    """``config.json`` with its dtype replaced and nothing else changed.

    Raises CheckpointError naming ``where`` when ``raw`` is not a JSON object.
    """
    try:
        config = json.loads(raw)
    except ValueError as error:
        raise CheckpointError(f"{where}: not valid JSON: {error}") from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{where}: not a JSON object")
    keys = [key for key in ("dtype", "torch_dtype") if key in config] or ["dtype"]
    for key in keys:
        config[key] = dtype.torch
    return json.dumps(config, indent=2, ensure_ascii=False).encode() + b"\n"
