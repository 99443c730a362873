"""Checkpoints mapped into memory: one copy in the page cache, shared by all processes."""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping
from functools import cached_property

import numpy as np

from avops.disk import Checkpoint, Tensor, open_regular
from avops.kernels import Operand


class Mapped:
    """The computable tensors of ``checkpoint`` as flat read-only operands by name.

    aligned: for a vector, whether it holds aligned weights rather than differences.
    """

    def __init__(self, checkpoint: Checkpoint, *, aligned: bool = False) -> None:
        self.checkpoint, self.aligned = checkpoint, aligned

    @cached_property
    def _maps(self) -> tuple[mmap.mmap, ...]:
        maps = []
        for shard in self.checkpoint.shards:
            fd = open_regular(shard.path)
            try:
                maps.append(mmap.mmap(fd, shard.size, prot=mmap.PROT_READ))
            finally:
                os.close(fd)
        return tuple(maps)

    @cached_property
    def operands(self) -> Mapping[str, Operand]:
        """Name to flat operand, for every BF16, F16 or F32 tensor."""
        return {
            tensor.name: Operand(self.raw(tensor).view(tensor.dtype.storage), tensor.dtype)
            for tensor in self.checkpoint.tensors.values()
            if tensor.dtype.computable
        }

    def raw(self, tensor: Tensor) -> np.ndarray:
        """The bytes of ``tensor``, read-only."""
        return np.frombuffer(self._maps[tensor.shard], np.uint8, tensor.nbytes, tensor.offset)
