"""Checkpoints: a safetensors file, a sharded directory with an index, or a directory with one file.

Opening reads headers only. Symbolic links (hub snapshots) are followed. No pickle is ever loaded.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from avops.disk.garbage import no_collections
from avops.disk.header import element_count, parse_header, parse_length
from avops.disk.index import MAX_INDEX, parse_index
from avops.disk.reader import read_exactly
from avops.disk.source import Identity, open_regular
from avops.disk.strict_json import shown
from avops.dtypes import DType
from avops.errors import CheckpointError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_SECOND_COPY = "consolidated"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor in a file: ``shard`` is the index of its file, ``offset`` absolute in that file."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    shard: int
    offset: int
    nbytes: int

    @property
    def count(self) -> int:
        """Number of elements."""
        return element_count(self.shape)

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


@dataclass(frozen=True)
class Shard:
    """One safetensors file: its size in bytes, its raw header prefix and its metadata.

    identity: which version of the file was read.
    """

    path: Path
    size: int
    identity: Identity
    prefix: bytes
    metadata: Mapping[str, str]
    tensors: tuple[Tensor, ...]


@dataclass(frozen=True)
class Checkpoint:
    """A set of named tensors on disk.

    index: the raw index file of a sharded directory. recorded_size: the total_size that it
    records, None for none; anything may stand there.
    """

    path: Path
    shards: tuple[Shard, ...]
    index: bytes | None = None
    recorded_size: Any = None

    @property
    def is_file(self) -> bool:
        """Whether the checkpoint is a single file rather than a directory."""
        return self.path.is_file()

    @property
    def directory(self) -> Path:
        """Where config and tokenizer are: the directory itself, or the file's."""
        return self.path.parent if self.is_file else self.path

    @cached_property
    def tensors(self) -> Mapping[str, Tensor]:
        """All tensors by name, shard after shard, in file-offset order."""
        return {tensor.name: tensor for shard in self.shards for tensor in shard.tensors}

    @property
    def nbytes(self) -> int:
        """Bytes of tensor data."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def files(self) -> tuple[Path, ...]:
        """The shards' paths."""
        return tuple(shard.path for shard in self.shards)


def open_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Open the checkpoint at ``path`` (headers only).

    Raises CheckpointError for a missing path, a malformed file, a bad index or a missing shard.
    """
    with no_collections():
        return _open(Path(path))


def _open(path: Path) -> Checkpoint:
    try:
        is_dir = stat.S_ISDIR(path.stat().st_mode)
    except (OSError, ValueError) as error:
        # ValueError: a path with a NUL.
        reason = error.strerror if isinstance(error, OSError) else error
        raise CheckpointError(
            f"{path}: cannot open the checkpoint: {reason}; "
            "expected a .safetensors file or a directory with one"
        ) from None
    if not is_dir:
        if path.suffix in _PICKLES:
            raise CheckpointError(_pickle_message(path))
        return Checkpoint(path, (_open_shard(path, 0),))
    return _open_directory(path)


def _open_directory(path: Path) -> Checkpoint:
    try:
        names = sorted(os.listdir(path))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot list the directory: {error.strerror}") from None
    if INDEX in names:
        return _open_sharded(path, also_single=SINGLE in names)
    files = loose_weights(names)
    if "adapter_config.json" in names:
        raise CheckpointError(
            f"{path}: a LoRA adapter, expected full weights; use it with --av on the base that it "
            "was trained on"
        )
    if len(files) == 1:
        return Checkpoint(path, (_open_shard(path / files[0], 0),))
    if files:
        raise CheckpointError(
            f"{path}: {len(files)} safetensors files but no {INDEX}, so nothing tells which belong "
            "together; download the index, save the model again, or name one file"
        )
    pickles = [name for name in names if name.endswith(_PICKLES)]
    if pickles:
        raise CheckpointError(_pickle_message(path / pickles[0]))
    raise CheckpointError(
        f"{path}: no safetensors file in this directory, expected {SINGLE} or {INDEX}"
    )


def loose_weights(names: Sequence[str]) -> list[str]:
    """Of a directory without an index the files among ``names`` that are its weights."""
    files = [name for name in names if name.endswith(".safetensors")]
    if SINGLE in files:
        return [SINGLE]
    # Mistral's repositories hold the weights twice, once in this form.
    return [name for name in files if not name.startswith(_SECOND_COPY)] or files


def _open_sharded(path: Path, *, also_single: bool) -> Checkpoint:
    where = path / INDEX
    raw = _read_small(where)
    index = parse_index(raw, where)
    weight_map = index.weight_map
    tensors = Counter(weight_map.values())
    if also_single and SINGLE not in tensors:
        raise CheckpointError(
            f"{path}: holds both {SINGLE} and {INDEX}, which does not name it: one of them is "
            "stale; remove that one, or name a file"
        )
    shards: list[Shard] = []
    found: dict[str, str] = {}
    for number, name in enumerate(sorted(tensors)):
        # Not Path.exists, which raises for a name that the file system cannot hold.
        if not os.path.exists(path / name):
            raise CheckpointError(
                f"{path / name}: shard missing, but {INDEX} names it for {tensors[name]} tensors; "
                "download it again"
            )
        shards.append(_open_shard(path / name, number))
        _add_found(found, shards[-1], where)
    _check_index(weight_map, found, where)
    return Checkpoint(path, tuple(shards), raw, index.total_size)


def _add_found(found: dict[str, str], shard: Shard, where: Path) -> None:
    """Add the shard's tensors. Raises CheckpointError for a shard of nothing new.

    So an index that names one large header again and again is refused at the second reading.
    """
    if not shard.tensors:
        raise CheckpointError(
            f"{where}: names {shard.path.name}, which holds no tensors: the index is stale; "
            "download it again, or save the model again"
        )
    name = shard.path.name
    held = dict.fromkeys((tensor.name for tensor in shard.tensors), name)
    for twice in held.keys() & found.keys():
        raise CheckpointError(
            f"{where.parent}: tensor {twice!r} is in both {found[twice]} and {name}; remove the "
            "file that does not belong to the checkpoint, or download it again"
        )
    found |= held


def _check_index(weight_map: Mapping[str, str], found: Mapping[str, str], where: Path) -> None:
    if weight_map == found:
        return
    for name in sorted(weight_map.keys() | found.keys()):
        if weight_map.get(name) != found.get(name):
            raise CheckpointError(
                f"{where}: tensor {shown(name)} is in {found.get(name) or 'no shard'}, but the "
                f"index says {weight_map.get(name) or 'nothing of it'}: the index is stale; "
                "download it again, or save the model again"
            )


def _open_shard(path: Path, number: int) -> Shard:
    fd = open_regular(path)
    try:
        identity = Identity.of(fd)
        size = identity.size
        head = bytearray(min(size, 8))
        read_exactly(fd, head, 0, str(path))
        length = parse_length(bytes(head), size, str(path))
        text = bytearray(length)
        read_exactly(fd, text, 8, str(path))
    finally:
        os.close(fd)
    header = parse_header(bytes(text), size - 8 - length, str(path))
    tensors = tuple(
        Tensor(e.name, e.dtype, e.shape, number, header.data_start + e.begin, e.end - e.begin)
        for e in header.entries
    )
    return Shard(path, size, identity, bytes(head + text), header.metadata, tensors)


def _read_small(path: Path) -> bytes:
    fd = open_regular(path)
    try:
        size = os.fstat(fd).st_size
        if size > MAX_INDEX:
            raise CheckpointError(f"{path}: {size} bytes, expected at most {MAX_INDEX}")
        data = bytearray(size)
        read_exactly(fd, data, 0, str(path))
        return bytes(data)
    finally:
        os.close(fd)


def _pickle_message(path: Path) -> str:
    return (
        f"{path}: a PyTorch pickle, which can run code when loaded, expected safetensors; "
        'convert it in a sandbox with: python -c "from transformers import AutoModelForCausalLM '
        f"as M; M.from_pretrained('{path.parent}').save_pretrained('{path.parent}-safetensors')\""
    )
