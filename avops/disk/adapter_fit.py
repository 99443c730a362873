"""Does an adapter fit the base? Ties between embedding and head, and base weights carried along."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from avops.disk.checkpoint import Checkpoint, Tensor
from avops.disk.nearest import nearest
from avops.disk.parts import LowRank, Stored
from avops.disk.reader import read_exactly
from avops.disk.source import open_regular
from avops.disk.vector import Vector
from avops.dtypes import BF16
from avops.errors import MismatchError

if TYPE_CHECKING:
    import numpy as np

_HEADS = ("lm_head.weight", "output.weight", "embed_out.weight")
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight")
_CHUNK = 1 << 18


def vector_notes(base: Checkpoint, vector: Vector) -> tuple[str, ...]:
    """What the user should know of ``vector`` on ``base``, though it fits."""
    for name in vector.parts if vector.adapter is not None else ():
        if name in base.tensors and name.endswith((*_HEADS, *_EMBEDDINGS)):
            ends = _HEADS if name.endswith(_EMBEDDINGS) else _EMBEDDINGS
            if not any(other.endswith(ends) for other in base.tensors):
                note = (
                    f"AV {vector.name} changes {name!r}, which the base uses for embedding and "
                    "head: both move, as after PEFT's merge_and_unload; the adapter alone moves one"
                )
                return (note,)
    return ()


def _tied_to(base: Checkpoint, name: str) -> str | None:
    """The base's embedding when ``name`` is a head that the base lacks, or the other way round."""
    for mine, theirs in ((_HEADS, _EMBEDDINGS), (_EMBEDDINGS, _HEADS)):
        if name.endswith(mine) and not any(other.endswith(mine) for other in base.tensors):
            return next((other for other in base.tensors if other.endswith(theirs)), None)
    return None


def repeats_tied(base: Checkpoint, vector: Vector, name: str) -> bool:
    """Whether part ``name`` only repeats what the adapter says of the tensor it is tied to."""
    part, other = vector.parts[name], vector.parts.get(_tied_to(base, name) or "")
    return (
        vector.adapter is not None
        and isinstance(part, Stored)
        and isinstance(other, Stored)
        and part.shape == other.shape
        and _equal(vector.checkpoint, other.tensor, vector, part.tensor)
    )


def check_copy(base: Checkpoint, vector: Vector, name: str, copy: Tensor) -> None:
    """An adapter is relative to the weights it was trained on: those that it stores tell."""
    tensor = base.tensors.get(name) or base.tensors.get(_tied_to(base, name) or "")
    if tensor is not None and copy.shape == tensor.shape and _equal(base, tensor, vector, copy):
        return
    theirs = "it is missing" if tensor is None else f"it is {tensor} with other values"
    raise MismatchError(
        f"AV {vector.name} ({vector.checkpoint.path}): stores {copy.name!r}, the {copy} weight "
        f"{name!r} that it was trained on, but in the base {base.path} {theirs}; give that base, "
        "or merge the adapter with PEFT and use the result as an aligned checkpoint"
    )


def _equal(base: Checkpoint, tensor: Tensor, vector: Vector, copy: Tensor) -> bool:
    """Whether two tensors hold the same values, whatever their dtypes."""
    if not (tensor.dtype.computable and copy.dtype.computable):
        return False
    sides = ((base, tensor), (vector.checkpoint, copy))
    import numpy as np

    fds = []
    try:
        for checkpoint, one in sides:
            fds.append(open_regular(checkpoint.shards[one.shard].path))
        for start in range(0, tensor.count, _CHUNK):
            count = min(_CHUNK, tensor.count - start)
            values = []
            for fd, (checkpoint, one) in zip(fds, sides, strict=True):
                raw = bytearray(count * one.dtype.size)
                where = str(checkpoint.shards[one.shard].path)
                read_exactly(fd, raw, one.offset + start * one.dtype.size, where)
                values.append(_wide(raw, one))
            if not np.array_equal(values[0], values[1], equal_nan=True):
                return False
    finally:
        for fd in fds:
            os.close(fd)
    return True


def _wide(raw: bytearray, tensor: Tensor) -> np.ndarray:
    """Elements in float32, exactly."""
    import numpy as np

    stored = np.frombuffer(raw, tensor.dtype.storage)
    if tensor.dtype is BF16:
        return (stored.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return stored.astype(np.float32)


def unplaced(vector: Vector, base: Checkpoint, names: Sequence[str]) -> str:
    """What to say of an adapter's parts ``names``, which the base lacks."""
    assert vector.adapter is not None
    name = names[0]
    part = vector.parts[name]
    what = "changes" if isinstance(part, LowRank) else "replaces"
    start = (
        f"AV {vector.name} ({vector.checkpoint.path}): the adapter {what} "
        f"{name.removesuffix('.weight')!r}, but the base {base.path} has no tensor {name!r}"
    )
    tied = _tied_to(base, name)
    if tied is not None:
        return (
            f"{start}: it ties it to {tied!r}, and one stored tensor cannot move two ways; "
            "save the base with separate tensors (tie_word_embeddings: false), or ignore "
            "this part of the adapter with --allow-extra"
        )
    near = nearest(name, base.tensors)
    like = f" (nearest name: {near!r})" if near else ""
    more = f", nor {len(names) - 1} others" if len(names) > 1 else ""
    return (
        f"{start}{like}{more}; is it the base that the adapter was trained on"
        f"{f', {vector.adapter.base}' if vector.adapter.base else ''}? --allow-extra ignores "
        "what the base lacks"
    )
