"""Sidecars: the small files that make a directory of weights a model.

Config, generation config, tokenizer, chat template and remote code are copied byte for byte.
Weights, nested directories, and files over 64 MiB are not sidecars.
"""

from __future__ import annotations

import json
import stat
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


def sidecars(directory: Path, *, known_only: bool) -> tuple[dict[str, bytes], dict[str, str]]:
    """Sidecar files of ``directory`` by name, and what was left out: name to reason.

    Raises CheckpointError when the directory or a sidecar is unreadable.
    """
    found: dict[str, bytes] = {}
    skipped: dict[str, str] = {}
    try:
        paths = sorted(directory.iterdir())
    except OSError as error:
        raise CheckpointError(
            f"{directory}: cannot list the directory for config and tokenizer: {error.strerror}"
        ) from None
    for path in paths:
        wanted = path.name in _KNOWN or (not known_only and _is_sidecar(path))
        if not wanted or path.name in _NEVER or path.name.endswith(f".{RECIPE_NAME}"):
            continue
        try:
            if path.is_dir():
                skipped[path.name] = "a directory"
            elif not stat.S_ISREG(path.stat().st_mode):
                # A FIFO would never end, and neither would a link to a device.
                skipped[path.name] = "not a regular file"
            elif path.stat().st_size > _MAX_SIZE:
                skipped[path.name] = f"larger than {_MAX_SIZE >> 20} MiB"
            else:
                found[path.name] = path.read_bytes()
        except OSError as error:
            raise CheckpointError(f"{path}: cannot copy the sidecar: {error.strerror}") from None
    return found, skipped


def _is_sidecar(path: Path) -> bool:
    if path.name.endswith(".index.json") or path.name.startswith("."):
        return False
    # Mistral's tokenizers are versioned by suffix: tokenizer.model.v3.
    if path.name.startswith("tokenizer.model") or path.name == "additional_chat_templates":
        return True
    return path.suffix in _SUFFIXES or path.stem.upper() in ("LICENSE", "NOTICE", "USE_POLICY")


def patch_config(raw: bytes, dtype: DType, where: str) -> bytes:
    """``config.json`` with its dtype replaced; other values, and the order of keys, stay.

    Raises CheckpointError naming ``where`` when ``raw`` is not a JSON object.
    """
    try:
        config = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where}: not valid JSON: {error}") from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{where}: not a JSON object")
    keys = [key for key in ("dtype", "torch_dtype") if key in config] or ["dtype"]
    for key in keys:
        config[key] = dtype.torch
    try:
        return json.dumps(config, indent=2, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:
        raise CheckpointError(f"{where}: holds text that is not valid Unicode") from None
