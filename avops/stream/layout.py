"""Layouts: which output files there are, and where each tensor lies in them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avops.disk import Checkpoint, Shard, Tensor, encode_header
from avops.disk.checkpoint import INDEX, SINGLE
from avops.dtypes import DType
from avops.errors import OutputError
from avops.stream.plan import Output

_OTHER_KINDS = {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".json", ".npz"}


@dataclass(frozen=True)
class Place:
    """Where a tensor goes: output file number, absolute byte offset, dtype there."""

    output: int
    offset: int
    dtype: DType


@dataclass(frozen=True)
class Layout:
    """Output files, the place of every tensor, and the index file of a sharded directory."""

    outputs: tuple[Output, ...]
    places: dict[str, Place]
    index: bytes | None


def is_directory(out: Path) -> bool:
    """Whether the output path ``out`` means a directory: any name but ``*.safetensors``.

    Raises OutputError for names of other kinds of file.
    """
    if out.suffix == ".safetensors":
        return False
    if out.suffix.lower() in _OTHER_KINDS:
        raise OutputError(
            f"{out}: a directory would be made of that name, and avops writes no {out.suffix} "
            "files; name the output *.safetensors, or a directory"
        )
    return True


def same_layout(base: Checkpoint, name: str | None, dtype: DType | None) -> Layout:
    """The base's layout with floating tensors in ``dtype`` (None: as they are).

    name: the single output file's name, or None for a directory with the base's shard names.
    Where neither dtype nor sharding changes, headers are the base's bytes.
    """

    def dtype_of(tensor: Tensor) -> DType:
        return dtype if dtype is not None and tensor.dtype.floating else tensor.dtype

    groups = _groups(base, name)
    outputs, places = [], {}
    for number, (file, shards) in enumerate(groups):
        tensors = [tensor for shard in shards for tensor in shard.tensors]
        kept = dtype is None or all(dtype_of(tensor) == tensor.dtype for tensor in tensors)
        if len(shards) == 1 and kept:
            outputs.append(Output(file, shards[0].prefix, shards[0].size))
            offsets = {tensor.name: tensor.offset for tensor in tensors}
        else:
            metadata = {**shards[0].metadata, "format": "pt"}
            output, offsets = _new_file(file, tensors, dtype_of, metadata)
            outputs.append(output)
        places.update({t.name: Place(number, offsets[t.name], dtype_of(t)) for t in tensors})
    index = base.index if name is None else None
    if index is not None:
        total = sum(_nbytes(tensor, dtype_of(tensor)) for tensor in base.tensors.values())
        if base.recorded_size not in (None, total):
            index = _with_total_size(index, total)
    return Layout(tuple(outputs), places, index)


def new_layout(
    base: Checkpoint,
    tensors: Sequence[Tensor],
    name: str | None,
    dtype: DType,
    metadata: dict[str, str],
) -> Layout:
    """A layout of ``tensors`` (a subset of the base's) in ``dtype`` with new headers.

    Sharded as the base for a directory (name None), one file otherwise.
    """
    wanted = {tensor.name for tensor in tensors}
    outputs: list[Output] = []
    places: dict[str, Place] = {}
    files: dict[str, str] = {}
    for file, shards in _groups(base, name):
        kept = [t for shard in shards for t in shard.tensors if t.name in wanted]
        if not kept:
            continue
        output, offsets = _new_file(file, kept, lambda _: dtype, {**metadata, "format": "pt"})
        places.update({t.name: Place(len(outputs), offsets[t.name], dtype) for t in kept})
        files.update({t.name: file for t in kept})
        outputs.append(output)
    index = None
    if name is None and base.index is not None:
        total = sum(_nbytes(tensor, dtype) for tensor in tensors)
        table = {"metadata": {"total_size": total}, "weight_map": dict(sorted(files.items()))}
        index = _dump(table)
    return Layout(tuple(outputs), places, index)


def index_file(layout: Layout) -> tuple[tuple[str, bytes], ...]:
    """The index as a small file, if the layout has one."""
    return ((INDEX, layout.index),) if layout.index is not None else ()


def _groups(base: Checkpoint, name: str | None) -> list[tuple[str, tuple[Shard, ...]]]:
    if name is not None:
        return [(name, base.shards)]
    if base.is_file:
        return [(SINGLE, base.shards)]
    return [(shard.path.name, (shard,)) for shard in base.shards]


def _new_file(
    name: str,
    tensors: Sequence[Tensor],
    dtype_of: Callable[[Tensor], DType],
    metadata: dict[str, str],
) -> tuple[Output, dict[str, int]]:
    prefix, offsets = encode_header(
        [(tensor.name, dtype_of(tensor), tensor.shape) for tensor in tensors], metadata
    )
    size = len(prefix) + sum(_nbytes(tensor, dtype_of(tensor)) for tensor in tensors)
    return Output(name, prefix, size), offsets


def _nbytes(tensor: Tensor, dtype: DType) -> int:
    return tensor.count * dtype.bits // 8


def _with_total_size(index: bytes, total: int) -> bytes:
    table: dict[str, Any] = json.loads(index)
    metadata = table.get("metadata")
    table["metadata"] = {**(metadata if isinstance(metadata, dict) else {}), "total_size": total}
    return _dump(table)


def _dump(table: dict[str, Any]) -> bytes:
    return json.dumps(table, indent=2, ensure_ascii=False).encode() + b"\n"
