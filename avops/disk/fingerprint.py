"""Fingerprints: which checkpoint is this, told from a sample of its bytes.

SHA-256 over every tensor's name, dtype and shape, and over its first, middle and last 4 KiB.
File names and sharding do not count. Two checkpoints that differ only between the samples
share a fingerprint, so it tells training runs apart; it is no integrity check. Of an adapter the
scales and directions of its factors count, too: they are in its settings, not in its tensors.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from operator import itemgetter
from typing import TYPE_CHECKING

from avops.disk.checkpoint import Checkpoint, Tensor
from avops.disk.parts import LowRank
from avops.disk.reader import read_exactly
from avops.disk.source import open_regular
from avops.disk.vector import Vector

if TYPE_CHECKING:
    from hashlib import _Hash

_SAMPLE = 4096
# Up to this size the samples of a tensor touch or overlap: one read, cut up.
_WHOLE = 3 * _SAMPLE


def fingerprint(what: Checkpoint | Vector) -> str:
    """The fingerprint of ``what``, 64 hexadecimal digits. Reads at most 12 KiB per tensor.

    Raises CheckpointError or AvopsError when a file cannot be read.
    """
    checkpoint = what.checkpoint if isinstance(what, Vector) else what
    digest = hashlib.sha256(b"avops-fingerprint-1\n")
    if isinstance(what, Vector):
        for name, part in sorted(what.parts.items()):
            if isinstance(part, LowRank):
                settings = [name, part.rank, part.scale.hex(), part.transposed]
                digest.update(json.dumps(settings).encode() + b"\n")
    with contextlib.ExitStack() as stack:
        files = []
        for shard in checkpoint.shards:
            files.append((open_regular(shard.path), str(shard.path)))
            stack.callback(os.close, files[-1][0])
        for _, tensor in sorted(checkpoint.tensors.items(), key=itemgetter(0)):
            _add(digest, tensor, *files[tensor.shard])
    return digest.hexdigest()


def _add(digest: _Hash, tensor: Tensor, fd: int, where: str) -> None:
    """Name, dtype, shape and samples of ``tensor``, which is in the open file ``fd``."""
    shape = ", ".join(map(str, tensor.shape))
    # As json.dumps gives the list of the three, several times faster.
    head = f'[{json.dumps(tensor.name)}, "{tensor.dtype.tag}", [{shape}]]\n'
    digest.update(head.encode())
    size = tensor.nbytes
    if size > _WHOLE:
        for start in _starts(size):
            digest.update(_read(fd, _SAMPLE, tensor.offset + start, where))
        return
    data = _read(fd, size, tensor.offset, where)
    if size <= _SAMPLE:
        digest.update(data)
    else:
        for start in _starts(size):
            digest.update(data[start : start + _SAMPLE])


def _starts(size: int) -> list[int]:
    """Where the samples of a tensor of ``size`` bytes, more than one sample, begin."""
    return sorted({0, max(0, size // 2 - _SAMPLE // 2), size - _SAMPLE})


def _read(fd: int, nbytes: int, offset: int, where: str) -> bytes | bytearray:
    with contextlib.suppress(OSError):
        data = os.pread(fd, nbytes, offset)
        if len(data) == nbytes:
            return data
    # Slower, and whatever it was, this succeeds or says what is wrong.
    buffer = bytearray(nbytes)
    read_exactly(fd, buffer, offset, where)
    return buffer
