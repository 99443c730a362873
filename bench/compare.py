"""Outputs against the reference: the same bytes, or how many elements differ."""

from __future__ import annotations

import filecmp
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from avops.disk import Checkpoint, open_checkpoint

_PART = 1 << 22


def same_bytes(out: Path, truth: Path) -> bool:
    """Whether all safetensors files of the two directories are the same."""
    names = sorted(file.name for file in truth.glob("*.safetensors"))
    if names != sorted(file.name for file in out.glob("*.safetensors")):
        return False
    try:
        return all(filecmp.cmp(out / name, truth / name, shallow=False) for name in names)
    finally:
        _forget(out)


@dataclass(frozen=True)
class Difference:
    """bf16 elements: how many there are, how many differ, and ‖difference‖ / ‖reference‖."""

    elements: int
    differing: int
    norm: float

    def __str__(self) -> str:
        if not self.differing:
            return "no element differs"
        share = self.differing / self.elements
        return f"{share:.2g} of the elements differ, relative norm {self.norm:.1e}"


def difference(out: Path, truth: Path) -> Difference:
    """What differs, element by element. Raises SystemExit when names, dtypes or shapes do."""
    ours, theirs = open_checkpoint(out), open_checkpoint(truth)
    kinds = [
        {t.name: (t.dtype.tag, t.shape) for t in model.tensors.values()} for model in (ours, theirs)
    ]
    if kinds[0] != kinds[1]:
        raise SystemExit(f"{out.name}: names, dtypes or shapes are not the reference's")
    elements = count = 0
    off = size = 0.0
    for name, tensor in theirs.tensors.items():
        one, two = _mapped(ours, name), _mapped(theirs, name)
        elements += tensor.count
        for start in range(0, tensor.count, _PART):
            part, other = one[start : start + _PART], two[start : start + _PART]
            wide = _widen(other)
            size += float(np.dot(wide, wide))
            if wrong := int(np.count_nonzero(part != other)):
                count += wrong
                apart = _widen(part) - wide
                off += float(np.dot(apart, apart))
    _forget(out)
    return Difference(elements, count, (off / size) ** 0.5 if size else 0.0)


def _mapped(model: Checkpoint, name: str) -> np.ndarray:
    tensor = model.tensors[name]
    path = model.shards[tensor.shard].path
    return np.memmap(path, np.uint16, "r", tensor.offset, (tensor.count,))


def _widen(stored: np.ndarray) -> np.ndarray:
    return (stored.astype(np.uint32) << np.uint32(16)).view(np.float32)


def _forget(directory: Path) -> None:
    """Leave the page cache to the inputs."""
    for file in directory.glob("*.safetensors"):
        fd = os.open(file, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)
