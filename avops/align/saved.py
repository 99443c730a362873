"""Writing what was trained: a checkpoint in the base's layout, or a LoRA adapter.

Names, shards and dtypes are the base's, so that the difference to the base is one tensor for one.
Everything goes through staging: the output is there whole, or not at all.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avops.disk import RECIPE_NAME, Checkpoint, Staging, Tensor, patch_config, sidecars
from avops.disk.digest import BLOCK, block_digest, bytes_digest, root_digest
from avops.disk.reader import read_exactly
from avops.disk.source import open_regular
from avops.dtypes import DType
from avops.errors import MismatchError, NonFiniteError, OutputError
from avops.stream.layout import Layout, index_file, is_directory, same_layout
from avops.stream.record import dump

if TYPE_CHECKING:
    import torch

ADAPTER = ("adapter_config.json", "adapter_model.safetensors")


@dataclass(frozen=True)
class Target:
    """An output that was checked before training. Use ``Target.of``.

    name: of the single file, None for a directory. dtype: None for the base's.
    """

    path: Path
    base: Checkpoint
    name: str | None
    dtype: DType | None
    adapter: bool
    force: bool

    @classmethod
    def of(
        cls,
        path: Path,
        base: Checkpoint,
        *,
        dtype: DType | None = None,
        adapter: bool = False,
        force: bool = False,
    ) -> Target:
        """The output ``path``: ``*.safetensors`` for one file, any other name for a directory.

        Raises OutputError for one that exists, is an input, does not fit the disk, or is a file
        where the output is a directory.
        """
        directory = is_directory(path)
        if adapter and not directory:
            raise OutputError(
                f"{path}: a LoRA adapter is a directory, expected a name without .safetensors; "
                "choose another -o"
            )
        target = cls(path, base, None if directory else path.name, dtype, adapter, force)
        size = 0 if adapter else sum(output.size for output in target.layout.outputs)
        target.staging().check(size)
        return target

    @property
    def layout(self) -> Layout:
        """Output files and the place of every tensor in them."""
        return same_layout(self.base, self.name, self.dtype)

    @property
    def record_name(self) -> str:
        """The name of the recipe file."""
        return RECIPE_NAME if self.name is None else f"{self.path.stem}.{RECIPE_NAME}"

    def staging(self) -> Staging:
        """Where the output is made."""
        return Staging(
            self.path,
            directory=self.name is None,
            force=self.force,
            inputs=[self.base.path],
            companions=() if self.name is None else (self.record_name,),
        )


def save_aligned(
    target: Target, weights: Mapping[str, torch.Tensor], record: Mapping[str, Any]
) -> None:
    """Write the trained ``weights``, the base's sidecars and ``record``.

    Tensors that the model has no weights for (an old buffer, say) are the base's bytes. Raises
    MismatchError where trained weights have no place in the base, NonFiniteError, WriteError.
    """
    check_places(target.base, weights)
    small = dict(index_file(target.layout))
    if target.name is None:
        small |= _sidecars(target.base, target.dtype)
    with target.staging() as staging:
        files = _write(staging, target, weights)
        for name, data in small.items():
            staging.add(name, data)
        _finish(staging, target, record, files, small)


def save_adapter(
    target: Target,
    weights: Mapping[str, torch.Tensor],
    config: bytes,
    record: Mapping[str, Any],
) -> None:
    """Write a LoRA adapter as PEFT lays it out, and ``record``."""
    from safetensors.torch import save

    for name, tensor in weights.items():
        _check_finite(name, tensor)
    tensors = {name: tensor.contiguous() for name, tensor in sorted(weights.items())}
    small = dict(zip(ADAPTER, (config, save(tensors, {"format": "pt"})), strict=True))
    with target.staging() as staging:
        for name, data in small.items():
            staging.add(name, data)
        _finish(staging, target, record, {}, small)


def check_places(base: Checkpoint, weights: Mapping[str, torch.Tensor]) -> None:
    """Refuse trained weights that the base has under no name. Raises MismatchError.

    One that a tie repeats (a head that is the embedding) is there under the other name.
    """
    import torch

    placed = [name for name in weights if name in base.tensors]
    for name, tensor in weights.items():
        if name in base.tensors:
            expected = base.tensors[name]
            if tuple(tensor.shape) != expected.shape:
                raise MismatchError(
                    f"{base.path}: tensor {name!r} is {expected} there, and {list(tensor.shape)} "
                    "in the trained model; expected one shape"
                )
        elif not any(
            weights[other].shape == tensor.shape and torch.equal(weights[other], tensor)
            for other in placed
        ):
            raise MismatchError(
                f"{base.path}: the trained model has {name!r}, and the checkpoint no tensor of "
                "that name: transformers renames this architecture's weights; "
                "train a LoRA adapter (--lora-rank)"
            )


def _write(
    staging: Staging, target: Target, weights: Mapping[str, torch.Tensor]
) -> dict[str, dict[str, Any]]:
    """Write all tensors, file by file and front to back; size and digest of every file."""
    base, layout = target.base, target.layout
    order = sorted(base.tensors, key=lambda name: layout.places[name].offset)
    written: dict[str, dict[str, Any]] = {}
    for number, output in enumerate(layout.outputs):
        file, digests = staging.create(output.name, output.size), _Blocks()
        staging.write(file, output.prefix, 0)
        digests.add(output.prefix)
        for name in order:
            place = layout.places[name]
            if place.output != number or not base.tensors[name].nbytes:
                continue
            data = (
                _encoded(name, weights[name], place.dtype)
                if name in weights
                else _copied(base, base.tensors[name])
            )
            staging.write(file, data, place.offset)
            digests.add(data)
        written[output.name] = {"bytes": output.size, "xxh3": digests.root()}
    return written


class _Blocks:
    """The digest of bytes that come one after the other."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._done: list[bytes] = []

    def add(self, data: bytes | memoryview) -> None:
        """More bytes."""
        self._rest += data
        whole = len(self._rest) // BLOCK * BLOCK
        with memoryview(self._rest) as view:
            self._done += [block_digest(view[at : at + BLOCK]) for at in range(0, whole, BLOCK)]
        del self._rest[:whole]

    def root(self) -> str:
        """The digest of all of them."""
        return root_digest([*self._done, block_digest(self._rest)] if self._rest else self._done)


def _encoded(name: str, tensor: torch.Tensor, dtype: DType) -> memoryview:
    """The tensor's bytes in ``dtype``, rounded to nearest even."""
    import torch

    held = tensor.to(getattr(torch, dtype.torch or "")).contiguous()
    if dtype.floating:
        _check_finite(name, held)
    return held.reshape(-1).view(torch.uint8).numpy().data


def _check_finite(name: str, tensor: torch.Tensor) -> None:
    import torch

    if not bool(torch.isfinite(tensor).all()):
        raise NonFiniteError(
            f"tensor {name!r} holds NaN or infinity after training, expected finite weights; lower "
            "--lr, or save it in a wider --dtype"
        )


def _copied(base: Checkpoint, tensor: Tensor) -> memoryview:
    """The base's own bytes."""
    path = base.shards[tensor.shard].path
    data = bytearray(tensor.nbytes)
    fd = open_regular(path)
    try:
        read_exactly(fd, data, tensor.offset, str(path))
    finally:
        os.close(fd)
    return memoryview(data)


def _sidecars(base: Checkpoint, dtype: DType | None) -> dict[str, bytes]:
    directory = base.directory if str(base.directory) else Path()
    found, _ = sidecars(directory, known_only=base.is_file)
    if dtype is not None and "config.json" in found:
        where = str(directory / "config.json")
        found["config.json"] = patch_config(found["config.json"], dtype, where)
    return found


def _finish(
    staging: Staging,
    target: Target,
    record: Mapping[str, Any],
    files: Mapping[str, dict[str, Any]],
    small: Mapping[str, bytes],
) -> None:
    """Add the record, which lists every other file, and publish."""
    listed = dict(files)
    listed |= {name: {"bytes": len(d), "xxh3": bytes_digest(d)} for name, d in small.items()}
    staging.add(target.record_name, dump({**record, "files": dict(sorted(listed.items()))}))
    staging.commit()
