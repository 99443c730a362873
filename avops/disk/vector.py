"""Alignment vectors on disk: delta files, aligned checkpoints and LoRA adapters.

A delta file is a checkpoint of differences whose metadata says so; a directory with
``adapter_config.json`` is an adapter of PEFT, whose differences are products of two small
factors; anything else is taken as an aligned checkpoint, whose difference to the base is
computed on the fly.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from avops.disk.adapter import adapter_directory, open_adapter
from avops.disk.adapter_config import AdapterConfig
from avops.disk.checkpoint import Checkpoint, Tensor, open_checkpoint
from avops.disk.garbage import no_collections
from avops.disk.parts import LowRank, Part, Stored
from avops.errors import CheckpointError

__all__ = ["LowRank", "Part", "Stored", "Vector", "open_base", "open_vector"]

KIND_KEY = "avops.kind"
BASE_KEY = "avops.base_fingerprint"
BASE_NAME_KEY = "avops.base"
# "true" in a delta file that leaves out tensors whose difference is 0.
PARTIAL_KEY = "avops.partial"


@dataclass(frozen=True)
class Vector:
    """An opened alignment vector.

    aligned: the files hold aligned weights, not differences. parts: what it says about base
    tensors, by the base's names. copies: base tensors that an adapter carries along, which must
    equal the base's. adapter: an adapter's settings.
    """

    name: str
    checkpoint: Checkpoint
    aligned: bool
    parts: Mapping[str, Part]
    copies: Mapping[str, Tensor] = field(default_factory=dict)
    adapter: AdapterConfig | None = None

    @property
    def kind(self) -> str:
        """``delta``, ``aligned`` or ``adapter``."""
        if self.adapter is not None:
            return "adapter"
        return "aligned" if self.aligned else "delta"

    @property
    def partial(self) -> bool:
        """Whether tensors that it lacks have no difference, by design."""
        return self.adapter is not None or self.metadata.get(PARTIAL_KEY) == "true"

    @property
    def needs_base(self) -> bool:
        """Whether differences can only be told with the base at hand."""
        return any(isinstance(part, Stored) and part.aligned for part in self.parts.values())

    @property
    def metadata(self) -> Mapping[str, str]:
        """The first shard's metadata."""
        return self.checkpoint.shards[0].metadata

    @property
    def base_fingerprint(self) -> str | None:
        """Fingerprint of the base that the delta was extracted from, if recorded."""
        return self.metadata.get(BASE_KEY)


def open_base(path: str | os.PathLike[str]) -> Checkpoint:
    """Open a checkpoint of weights. Raises CheckpointError when it is an alignment vector."""
    if adapter_directory(Path(path)) is not None:
        raise CheckpointError(
            f"{path}: a LoRA adapter, expected a checkpoint of weights; use it with --av, on the "
            "base that it was trained on"
        )
    checkpoint = open_checkpoint(path)
    if any(shard.metadata.get(KIND_KEY) for shard in checkpoint.shards):
        raise CheckpointError(
            f"{path}: already an alignment vector, expected a checkpoint of weights; "
            "use it with --av"
        )
    return checkpoint


def open_vector(name: str, path: str | os.PathLike[str], kind: str = "auto") -> Vector:
    """Open the alignment vector at ``path``; ``kind`` is auto, delta, aligned or adapter.

    Raises CheckpointError for an unreadable checkpoint or adapter, an adapter that is more than
    low-rank differences, or a kind that the files contradict.
    """
    with no_collections():
        return _open(name, path, kind)


def _open(name: str, path: str | os.PathLike[str], kind: str) -> Vector:
    directory = adapter_directory(Path(path))
    if kind == "adapter" or (kind == "auto" and directory is not None):
        opened = open_adapter(directory or Path(path))
        return Vector(name, opened.checkpoint, False, opened.parts, opened.copies, opened.config)
    if directory is not None:
        raise CheckpointError(
            f"{path}: a LoRA adapter, expected a checkpoint; remove kind = {kind!r}"
        )
    return _open_weights(name, path, kind)


def _open_weights(name: str, path: str | os.PathLike[str], kind: str) -> Vector:
    checkpoint = open_checkpoint(path)
    recorded = {shard.metadata.get(KIND_KEY) for shard in checkpoint.shards}
    if len(recorded) != 1 or not recorded <= {None, "delta"}:
        raise CheckpointError(
            f"{path}: {KIND_KEY} is {sorted(map(str, recorded))} in its shards, "
            "expected 'delta' in all of them or in none"
        )
    is_delta = recorded == {"delta"}
    if kind == "aligned" and is_delta:
        raise CheckpointError(
            f"{path}: a delta file by its metadata, expected an aligned checkpoint; "
            "remove kind = 'aligned'"
        )
    aligned = not is_delta and kind != "delta"
    parts: dict[str, Part] = {
        tensor.name: Stored(tensor, aligned) for tensor in checkpoint.tensors.values()
    }
    return Vector(name, checkpoint, aligned, parts)
