"""Alignment vectors on disk: delta files and aligned checkpoints.

A delta file is a checkpoint of differences whose metadata says so; anything else is taken as
an aligned checkpoint, whose difference to the base is computed on the fly.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from avops.disk.checkpoint import Checkpoint, open_checkpoint
from avops.errors import CheckpointError

KIND_KEY = "avops.kind"
BASE_KEY = "avops.base_fingerprint"
BASE_NAME_KEY = "avops.base"


@dataclass(frozen=True)
class Vector:
    """An opened alignment vector. ``aligned``: the files hold aligned weights, not differences."""

    name: str
    checkpoint: Checkpoint
    aligned: bool

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
    checkpoint = open_checkpoint(path)
    if any(shard.metadata.get(KIND_KEY) for shard in checkpoint.shards):
        raise CheckpointError(
            f"{path}: already an alignment vector, expected a checkpoint of weights; "
            "use it with --av"
        )
    return checkpoint


def open_vector(name: str, path: str | os.PathLike[str], kind: str = "auto") -> Vector:
    """Open the alignment vector at ``path``; ``kind`` is auto, delta or aligned.

    Raises CheckpointError for an unreadable checkpoint, or a kind its metadata contradicts.
    """
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
    return Vector(name, checkpoint, aligned=not is_delta and kind != "delta")
