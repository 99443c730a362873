"""Outputs against the reference: the same bytes, or how many elements differ."""

from __future__ import annotations

import filecmp
import os
from pathlib import Path

import numpy as np

from avops.disk import open_checkpoint

_PART = 1 << 24


def same_bytes(out: Path, truth: Path) -> bool:
    """Whether all safetensors files of the two directories are the same."""
    names = sorted(file.name for file in truth.glob("*.safetensors"))
    if names != sorted(file.name for file in out.glob("*.safetensors")):
        return False
    try:
        return all(filecmp.cmp(out / name, truth / name, shallow=False) for name in names)
    finally:
        _forget(out)


def differing(out: Path, truth: Path) -> dict[str, int]:
    """bf16 elements of two checkpoints: how many, how many differ, by how many steps at most.

    Raises SystemExit when names, dtypes or shapes are not the same.
    """
    ours, theirs = open_checkpoint(out), open_checkpoint(truth)
    kinds = [
        {t.name: (t.dtype.tag, t.shape) for t in model.tensors.values()} for model in (ours, theirs)
    ]
    if kinds[0] != kinds[1]:
        raise SystemExit(f"{out.name}: names, dtypes or shapes are not the reference's")
    elements = count = steps = 0
    for name, tensor in theirs.tensors.items():
        other = ours.tensors[name]
        two = np.memmap(
            theirs.shards[tensor.shard].path, np.uint16, "r", tensor.offset, (tensor.count,)
        )
        one = np.memmap(
            ours.shards[other.shard].path, np.uint16, "r", other.offset, (other.count,)
        )
        elements += tensor.count
        for start in range(0, tensor.count, _PART):
            parts = one[start : start + _PART], two[start : start + _PART]
            wrong = parts[0] != parts[1]
            if wrong.any():
                apart = np.abs(_ordered(parts[0][wrong]) - _ordered(parts[1][wrong]))
                # +0 and -0 are different bits at one place.
                count, steps = count + int(wrong.sum()), max(steps, int(apart.max()))
    _forget(out)
    return {"elements": elements, "differing": count, "steps": steps}


def _ordered(stored: np.ndarray) -> np.ndarray:
    """Bit patterns as integers in the order of the values."""
    raw = stored.astype(np.int32)
    magnitude = raw & 0x7FFF
    return np.where(raw >> 15, -magnitude, magnitude)


def _forget(directory: Path) -> None:
    """Leave the page cache to the inputs."""
    for file in directory.glob("*.safetensors"):
        fd = os.open(file, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)
