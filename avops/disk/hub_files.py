"""Which files of a hub repository make a checkpoint: weights in safetensors, and small files.

Pickles, subdirectories, other formats and second copies of the weights are left on the hub.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avops.disk.checkpoint import INDEX, SINGLE
from avops.errors import CheckpointError

_SIDECAR_ENDINGS = (".json", ".txt", ".model", ".jinja", ".py", ".tiktoken")
_SIDECAR_STARTS = ("tokenizer.model", "LICENSE", "NOTICE", "USE_POLICY")
_PICKLE_ENDINGS = (".bin", ".pt", ".pth", ".ckpt")
_ADAPTER, _ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
_SHARD = re.compile(r"-\d{5}-of-\d{5}\.safetensors$")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
_MAX_INDEX = 200_000_000


@dataclass(frozen=True)
class Wanted:
    """Names of the files to have: ``weights`` without which nothing works, and ``others``."""

    weights: tuple[str, ...]
    others: tuple[str, ...] = ()

    def lacking(self, folder: Path) -> Wanted:
        """The part of it that is not in ``folder``."""
        return Wanted(
            tuple(name for name in self.weights if not (folder / name).exists()),
            tuple(name for name in self.others if not (folder / name).exists()),
        )

    def __bool__(self) -> bool:
        return bool(self.weights or self.others)


def choose(text: str, repo: str, names: Iterable[str], folder: Path | None) -> Wanted:
    """What to have of a repository whose files are ``names``; ``folder`` is where its index is.

    Raises CheckpointError naming ``text`` when the files make no checkpoint.
    """
    top = sorted(name for name in names if "/" not in name)
    others = tuple(
        name
        for name in top
        if name.startswith(_SIDECAR_STARTS)
        or (name.endswith(_SIDECAR_ENDINGS) and not name.endswith(".index.json"))
    )
    if INDEX in top:
        if folder is None or not (folder / INDEX).exists():
            return Wanted((INDEX,), others)
        return Wanted((INDEX, *_shards_of(text, folder / INDEX, top)), others)
    files = [name for name in top if name.endswith(".safetensors")]
    for name in (SINGLE, _ADAPTER):
        if name in files:
            return Wanted((name,), others)
    own = [name for name in files if not name.startswith("consolidated")] or files
    if len(own) == 1:
        return Wanted((own[0],), others)
    if own:
        raise CheckpointError(
            f"{text}: holds {len(own)} safetensors files but no {INDEX}; download the one you "
            f"mean with `hf download {repo} {own[0]}`, and give its path"
        )
    raise CheckpointError(_no_weights(text, repo, top))


def guess(folder: Path) -> Wanted:
    """What the snapshot in ``folder``, of which no listing is known, must at least have.

    Raises CheckpointError for an unreadable index.
    """
    here = [path.name for path in folder.iterdir()]
    others = [] if _ADAPTER_CONFIG in here else ["config.json"]
    if not any(name.startswith(_TOKENIZERS) for name in here):
        others.append(_TOKENIZERS[0])
    if INDEX in here:
        return Wanted((INDEX, *sorted(shard_names(folder / INDEX))), tuple(others))
    files = [name for name in here if name.endswith(".safetensors") and not _SHARD.search(name)]
    return Wanted(tuple(files[:1]) or (SINGLE,), tuple(others))


def shard_names(index: Path) -> set[str]:
    """The files that the index names. Opening the checkpoint checks the index in full."""
    try:
        if index.stat().st_size > _MAX_INDEX:
            raise ValueError(f"larger than {_MAX_INDEX} bytes")
        weight_map: Any = json.loads(index.read_bytes())["weight_map"]
        return {str(name) for name in weight_map.values()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{index}: not a valid index ({type(error).__name__}), expected JSON with a "
            "weight_map of tensor to file name; remove it from the cache and download it again"
        ) from None


def _shards_of(text: str, index: Path, names: Sequence[str]) -> list[str]:
    shards = shard_names(index)
    gone = sorted(shards.difference(names))
    if gone:
        raise CheckpointError(
            f"{text}: {INDEX} names {gone[0]!r}, which the repository does not hold; "
            "tell its owner, or choose another revision"
        )
    return sorted(shards)


def _no_weights(text: str, repo: str, names: Sequence[str]) -> str:
    pickles = [name for name in names if name.endswith(_PICKLE_ENDINGS)]
    if not pickles:
        return (
            f"{text}: the repository holds no safetensors file, expected {SINGLE} or {INDEX}; "
            "choose a repository of full weights"
        )
    loader = "from transformers import AutoModelForCausalLM as M"
    if _ADAPTER_CONFIG in names:
        loader = "from peft import AutoPeftModelForCausalLM as M"
    revision = f", revision={text.partition('@')[2]!r}" if "@" in text else ""
    target = repo.split("/")[1] + "-safetensors"
    return (
        f"{text}: holds PyTorch pickles ({pickles[0]}), which can run code when loaded, expected "
        f'safetensors; convert it in a sandbox with: python -c "{loader}; '
        f"M.from_pretrained('{repo}'{revision}).save_pretrained('{target}')\" "
        "and give that directory"
    )
