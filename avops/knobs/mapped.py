"""Checkpoints and alignment vectors mapped into memory: one copy in the page cache for all."""

from __future__ import annotations

import mmap
import os
import weakref
from collections.abc import Iterator, Mapping
from functools import cached_property

import numpy as np

from avops.disk import Checkpoint, LowRank, Tensor, Vector, open_regular
from avops.disk.source import Source
from avops.dtypes import F32
from avops.kernels import Factors, Operand, combine, diff, factors, lowrank


class Mapped:
    """The computable tensors of ``checkpoint`` as flat read-only operands by name."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint

    def check(self) -> None:
        """Raise CheckpointError when a file that is mapped was changed since its header was read.

        One that was replaced is still there under its map.
        """
        for source in self._opened[0]:
            source.check()

    @cached_property
    def _opened(self) -> tuple[tuple[Source, ...], tuple[mmap.mmap, ...]]:
        sources = []
        for shard in self.checkpoint.shards:
            sources.append(Source(shard.path, shard.identity))
            weakref.finalize(self, sources[-1].close)
        maps = []
        for shard in self.checkpoint.shards:
            fd = open_regular(shard.path)
            try:
                maps.append(mmap.mmap(fd, shard.size, prot=mmap.PROT_READ))
            finally:
                os.close(fd)
        return tuple(sources), tuple(maps)

    @cached_property
    def operands(self) -> Mapping[str, Operand]:
        """Name to flat operand, for every BF16, F16 or F32 tensor."""
        return {
            tensor.name: self.operand(tensor)
            for tensor in self.checkpoint.tensors.values()
            if tensor.dtype.computable
        }

    def operand(self, tensor: Tensor) -> Operand:
        """The flat operand of ``tensor``, of a computable dtype."""
        return Operand(self.raw(tensor).view(tensor.dtype.storage), tensor.dtype)

    def raw(self, tensor: Tensor) -> np.ndarray:
        """The bytes of ``tensor``, read-only."""
        return np.frombuffer(self._opened[1][tensor.shard], np.uint8, tensor.nbytes, tensor.offset)


class MappedVector:
    """The values of ``vector``, by the base's tensor names; low-rank ones are computed on demand.

    Factors are kept, as they are small; differences are computed ``chunk`` elements at a time.
    """

    chunk = 1 << 20

    def __init__(self, vector: Vector) -> None:
        self.vector = vector
        self.mapped = Mapped(vector.checkpoint)
        self._factors: dict[str, Factors] = {}

    def __contains__(self, name: str) -> bool:
        return name in self.vector.parts

    def aligned(self, name: str) -> bool:
        """Whether ``name`` has weights rather than differences."""
        part = self.vector.parts[name]
        return not isinstance(part, LowRank) and part.aligned

    def low_rank(self, name: str) -> bool:
        """Whether the difference of ``name`` is computed, not stored."""
        return isinstance(self.vector.parts.get(name), LowRank)

    def stored(self, name: str) -> Tensor:
        """The tensor of ``name``, whose values are stored."""
        part = self.vector.parts[name]
        assert not isinstance(part, LowRank)
        return part.tensor

    def values(self, name: str, start: int, count: int, *, threads: int = 1) -> Operand:
        """Elements start … start + count of ``name``, valid until the next call."""
        part = self.vector.parts[name]
        if not isinstance(part, LowRank):
            whole = self.mapped.operand(part.tensor)
            return Operand(whole.array[start : start + count], whole.dtype)
        if count > self._scratch.size:
            self._scratch = np.empty(max(count, self.chunk), np.float32)
        out = Operand(self._scratch[:count], F32)
        lowrank(self.factors(name), start, out, threads=threads)
        return out

    def deltas(self, name: str, base: Operand) -> Iterator[np.ndarray]:
        """Δ of ``name`` in float32, chunk by chunk; zeros where the vector lacks it."""
        for start in range(0, base.array.size, self.chunk):
            here = base.array[start : start + self.chunk]
            out = Operand(np.zeros(here.size, np.float32), F32)
            if name in self and self.aligned(name):
                diff(Operand(here, base.dtype), self.values(name, start, here.size), out)
            elif name in self:
                combine(self.values(name, start, here.size), (), out)
            yield out.array

    @cached_property
    def _scratch(self) -> np.ndarray:
        return np.empty(0, np.float32)

    def factors(self, name: str) -> Factors:
        """The factors of ``name``, whose difference is low-rank."""
        if name not in self._factors:
            part = self.vector.parts[name]
            assert isinstance(part, LowRank)
            a, b = self.mapped.operand(part.a), self.mapped.operand(part.b)
            self._factors[name] = factors(
                a, b, rank=part.rank, scale=part.scale, transposed=part.transposed
            )
        return self._factors[name]
