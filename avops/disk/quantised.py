"""Weights that are no plain numbers: quantised ones, which have scales beside them, and integers.

Adding up packed weights, or the scales of two models whose packed weights differ, gives a model
that loads and is wrong, so both are refused. Source: what transformers and PEFT save for fp8,
MXFP4, GPTQ, AWQ, bitsandbytes, compressed-tensors, HQQ, AQLM, EETQ and quanto, and MLX.
"""

from __future__ import annotations

import contextlib
import json
import os
from typing import Any, NoReturn

from avops.disk.checkpoint import Checkpoint, Tensor
from avops.disk.parts import Stored
from avops.disk.reader import read_exactly
from avops.disk.sidecars import sidecars
from avops.disk.source import open_regular
from avops.disk.strict_json import shown
from avops.disk.vector import Vector
from avops.errors import CheckpointError, MismatchError

# Tensors that only exist beside quantised weights.
_SUFFIXES = (
    ".qweight",
    ".qzeros",
    ".g_idx",
    ".absmax",
    ".quant_map",
    ".SCB",
    ".weight_packed",
    ".weight_scale",
    ".weight_scale_inv",
)
# Floats with these words in their last name, beside a packed matrix, are its scales.
_SCALES = ("scale", "absmax", "zero", "codebook", "biases")
_PACKED = ("U8", "I8", "U16", "I16", "U32", "I32")
# Arguments of from_pretrained in transformers that widen what it loads.
_WIDEN = {
    "fp8": "quantization_config=FineGrainedFP8Config(dequantize=True)",
    "mxfp4": "quantization_config=Mxfp4Config(dequantize=True)",
    "compressed-tensors": "quantization_config=CompressedTensorsConfig(dequantize=True)",
}
_CHUNK = 1 << 20


def check_plain(checkpoint: Checkpoint) -> None:
    """Refuse quantised weights. Raises MismatchError naming the first such tensor."""
    packed: dict[str, Tensor] = {}
    for tensor in checkpoint.tensors.values():
        if tensor.dtype.quantised or tensor.name.endswith(_SUFFIXES):
            _refuse(checkpoint, tensor)
        if tensor.dtype.tag in _PACKED and len(tensor.shape) > 1:
            packed[tensor.name.rpartition(".")[0]] = tensor
    if not packed:
        return
    for tensor in checkpoint.tensors.values():
        module, _, last = tensor.name.rpartition(".")
        if tensor.dtype.floating and module in packed and any(word in last for word in _SCALES):
            _refuse(checkpoint, packed[module], f" beside {tensor.name!r}, {tensor},")


def _refuse(checkpoint: Checkpoint, tensor: Tensor, beside: str = "") -> NoReturn:
    method = quantisation(checkpoint)
    known = "" if method is None else f" (config.json: quant_method {shown(method)})"
    raise MismatchError(
        f"{checkpoint.path}: tensor {tensor.name!r} is {tensor}{beside}{known}: quantised weights "
        f"mean nothing without their scales and cannot be added up; {_remedy(method)}"
    )


def _remedy(method: str | None) -> str:
    remedy = "use the bf16 or f32 weights that they were made from"
    if method == "bitsandbytes":
        return f"{remedy}, or dequantise them first (transformers: model.dequantize(), then save)"
    if method in _WIDEN:
        how = f"transformers: from_pretrained(…, {_WIDEN[method]}), then save_pretrained"
        return f"{remedy}, or dequantise them first ({how})"
    return f"{remedy}, or dequantise them first with the tool that made them"


def quantisation(checkpoint: Checkpoint) -> str | None:
    """The method that config.json beside the weights names; None where it names none."""
    try:
        files, _ = sidecars(checkpoint.directory, known_only=True)
        config: Any = json.loads(files["config.json"])
        found = config.get("quantization_config") or config.get("quantization")
        if not found:
            return None
        method = found.get("quant_method") or found.get("quant_algo") or found.get("mode")
    except (CheckpointError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return None
    return str(method) if method else "unnamed"


def plain_notes(checkpoint: Checkpoint) -> tuple[str, ...]:
    """What the user should know of plain weights whose config.json says that they are quantised."""
    method = quantisation(checkpoint)
    if method is None or any(t.dtype.tag in _PACKED for t in checkpoint.tensors.values()):
        return ()
    note = (
        f"{checkpoint.path}: config.json has quant_method {shown(method)}, but its weights are "
        "plain numbers: a loader may quantise the result; remove quantization_config if it should "
        "not"
    )
    return (note,)


def check_integers(base: Checkpoint, vector: Vector) -> None:
    """Refuse matrices of integers that are not the base's: a merge copies them from the base.

    Raises MismatchError naming the first of them. Reads them from both, if they are two files.
    """
    for tensor, other in _pairs(base, vector):
        if len(tensor.shape) > 1 and not _equal(base, tensor, vector, other):
            method = quantisation(base) or quantisation(vector.checkpoint)
            raise MismatchError(
                f"AV {vector.name} ({vector.checkpoint.path}): tensor {tensor.name!r} is {other}, "
                f"not equal to the base's in {base.path}, {tensor}, and integers cannot be added "
                f"up; if they are packed weights, {_remedy(method)}; if not, the two models are "
                "not of one kind"
            )


def integer_notes(base: Checkpoint, vector: Vector) -> tuple[str, ...]:
    """What the user should know of lists and single integers that are not the base's."""
    other = [
        tensor.name
        for tensor, theirs in _pairs(base, vector)
        if len(tensor.shape) <= 1 and not _equal(base, tensor, vector, theirs)
    ]
    if not other:
        return ()
    more = f" and {len(other) - 1} more" if len(other) > 1 else ""
    note = (
        f"AV {vector.name} has other values in {other[0]!r}{more}, which hold integers: they stay "
        "as in the base"
    )
    return (note,)


def _pairs(base: Checkpoint, vector: Vector) -> list[tuple[Tensor, Tensor]]:
    """Tensors of the base that are no floats, and what the vector holds in their place."""
    return [
        (tensor, part.tensor)
        for name, part in vector.parts.items()
        if isinstance(part, Stored)
        and not part.tensor.dtype.floating
        and (tensor := base.tensors.get(name)) is not None
        and not tensor.dtype.floating
        and part.aligned
    ]


def _equal(base: Checkpoint, tensor: Tensor, vector: Vector, other: Tensor) -> bool:
    """Whether two tensors have the same dtype, shape and bytes."""
    if (tensor.dtype, tensor.shape) != (other.dtype, other.shape):
        return False
    sides = ((base.shards[tensor.shard], tensor), (vector.checkpoint.shards[other.shard], other))
    if tensor.offset == other.offset and sides[0][0].identity == sides[1][0].identity:
        return True
    with contextlib.ExitStack() as stack:
        files = []
        for shard, one in sides:
            files.append((open_regular(shard.path), one.offset, str(shard.path)))
            stack.callback(os.close, files[-1][0])
        for start in range(0, tensor.nbytes, _CHUNK):
            pieces = [bytearray(min(_CHUNK, tensor.nbytes - start)) for _ in files]
            for piece, (fd, offset, where) in zip(pieces, files, strict=True):
                read_exactly(fd, piece, offset + start, where)
            if pieces[0] != pieces[1]:
                return False
    return True
