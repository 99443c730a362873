"""Fingerprints: which checkpoint is this, told from a sample of its bytes.

SHA-256 over every tensor's name, dtype and shape, and over its first, middle and last 4 KiB.
File names and sharding do not count. Two checkpoints that differ only between the samples
share a fingerprint, so it tells training runs apart; it is no integrity check. Of an adapter the
scales and directions of its factors count, too: they are in its settings, not in its tensors.
"""

from __future__ import annotations

import hashlib
import json
import os

from avops.disk.checkpoint import Checkpoint
from avops.disk.parts import LowRank
from avops.disk.reader import read_exactly
from avops.disk.source import open_regular
from avops.disk.vector import Vector

_SAMPLE = 4096


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
    fds = {number: open_regular(shard.path) for number, shard in enumerate(checkpoint.shards)}
    try:
        for name in sorted(checkpoint.tensors):
            tensor = checkpoint.tensors[name]
            head = json.dumps([name, tensor.dtype.tag, tensor.shape])
            digest.update(head.encode() + b"\n")
            middle = max(0, tensor.nbytes // 2 - _SAMPLE // 2)
            last = max(0, tensor.nbytes - _SAMPLE)
            for start in sorted({0, middle, last}):
                block = bytearray(min(_SAMPLE, tensor.nbytes - start))
                where = str(checkpoint.shards[tensor.shard].path)
                read_exactly(fds[tensor.shard], block, tensor.offset + start, where)
                digest.update(block)
    finally:
        for fd in fds.values():
            os.close(fd)
    return digest.hexdigest()
