"""Preflight: do these checkpoints fit each other? Headers decide, before any byte is written."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from avops.disk.checkpoint import Checkpoint, Tensor
from avops.disk.vector import Vector
from avops.errors import MismatchError

# Tensors that only exist beside quantised weights (GPTQ, AWQ, bitsandbytes, compressed-tensors).
_QUANTISED_SUFFIXES = (
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


def check_plain(checkpoint: Checkpoint) -> None:
    """Refuse quantised weights. Raises MismatchError naming the first such tensor."""
    for tensor in checkpoint.tensors.values():
        if tensor.dtype.quantised or tensor.name.endswith(_QUANTISED_SUFFIXES):
            raise MismatchError(
                f"{checkpoint.path}: tensor {tensor.name!r} is {tensor}: quantised weights mean "
                "nothing without their scales and cannot be added up; use the bf16 or f32 weights"
            )


def touched(base: Checkpoint) -> tuple[Tensor, ...]:
    """The base's tensors that alignment vectors change: the floating ones, in file order.

    Raises MismatchError for a floating dtype that no kernel computes on.
    """
    check_plain(base)
    found = []
    for tensor in base.tensors.values():
        if tensor.dtype.floating and not tensor.dtype.computable:
            raise MismatchError(
                f"{base.path}: tensor {tensor.name!r} is {tensor}, expected BF16, F16 or F32; "
                "convert the checkpoint first"
            )
        if tensor.dtype.floating:
            found.append(tensor)
    return tuple(found)


def check_vector(
    base: Checkpoint, vector: Vector, *, allow_missing: bool = False, allow_extra: bool = False
) -> None:
    """Refuse an alignment vector that does not fit the base, tensor by tensor.

    Raises MismatchError naming the vector, the tensor and both shapes; also for a base that
    nothing can be added to.
    """
    floating = touched(base)
    check_plain(vector.checkpoint)
    theirs = vector.checkpoint.tensors
    wanted = tuple(base.tensors.values()) if vector.aligned else floating
    missing = [tensor.name for tensor in wanted if tensor.name not in theirs]
    extra = [name for name in theirs if name not in base.tensors]
    if missing and not allow_missing:
        raise MismatchError(_names(vector, base, missing, "lacks", extra))
    if extra and not allow_extra:
        raise MismatchError(_names(vector, base, extra, "has", list(base.tensors)))
    for tensor in wanted:
        other = theirs.get(tensor.name)
        if other is not None:
            _check_tensor(base, vector, tensor, other)


def _check_tensor(base: Checkpoint, vector: Vector, tensor: Tensor, other: Tensor) -> None:
    if other.shape != tensor.shape:
        hint = "it belongs to another architecture or size"
        if len(other.shape) == len(tensor.shape) == 2 and other.shape[1] == tensor.shape[1]:
            hint = "it has another vocabulary: resize it to the base's"
        raise MismatchError(
            f"AV {vector.name} ({vector.checkpoint.path}): tensor {tensor.name!r} has shape "
            f"{list(other.shape)}, but in the base {base.path} it has {list(tensor.shape)}; {hint}"
        )
    if tensor.dtype.floating != other.dtype.computable:
        raise MismatchError(
            f"AV {vector.name} ({vector.checkpoint.path}): tensor {tensor.name!r} is {other}, "
            f"but in the base {base.path} it is {tensor}; floating tensors must be BF16, F16 or "
            "F32, and others the same kind in both"
        )


def _names(
    vector: Vector, base: Checkpoint, names: Sequence[str], verb: str, others: Sequence[str]
) -> str:
    near = difflib.get_close_matches(names[0], others, n=1)
    like = f" (nearest name there: {near[0]!r})" if near else ""
    shown = ", ".join(repr(name) for name in names[:3]) + (", ..." if len(names) > 3 else "")
    flag = "--allow-missing" if verb == "lacks" else "--allow-extra"
    relation = "of the base" if verb == "lacks" else "that are not in the base"
    effect = "leaves them as in the base" if verb == "lacks" else "ignores them"
    return (
        f"AV {vector.name} ({vector.checkpoint.path}) {verb} {len(names)} tensors {relation} "
        f"{base.path}: {shown}{like}; is it the same architecture? {flag} {effect}"
    )
