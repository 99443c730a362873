"""Preflight: do these checkpoints fit each other? Headers decide, before any byte is written."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from avops.disk.adapter_fit import check_copy, repeats_tied, unplaced
from avops.disk.checkpoint import Checkpoint, Tensor
from avops.disk.nearest import nearest
from avops.disk.parts import LowRank, Part
from avops.disk.quantised import check_integers, check_plain
from avops.disk.vector import Vector
from avops.errors import MismatchError, RecipeError


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
                "save it as F32 first, or leave it out where nothing needs it"
            )
        if tensor.dtype.floating:
            found.append(tensor)
    return tuple(found)


def check_vector(
    base: Checkpoint,
    vector: Vector,
    *,
    allow_missing: bool = False,
    allow_extra: bool = False,
    shared_rows: bool = False,
) -> None:
    """Refuse an alignment vector that does not fit the base, tensor by tensor.

    shared_rows: accept a matrix or a bias with another number of rows, of which the first
    min(rows) are then merged. Base tensors that an adapter carries along, and matrices of
    integers, are read and compared; all else is told from headers.

    Raises MismatchError naming the vector, the tensor and both shapes; also for a base that
    nothing can be added to.
    """
    floating = touched(base)
    check_plain(vector.checkpoint)
    wanted = tuple(base.tensors.values()) if vector.aligned else floating
    missing = [tensor.name for tensor in wanted if tensor.name not in vector.parts]
    extra = [
        name
        for name in vector.parts
        if name not in base.tensors and not repeats_tied(base, vector, name)
    ]
    if missing and not (allow_missing or vector.partial):
        raise MismatchError(_names(vector, base, missing, "lacks", extra))
    if extra and not allow_extra:
        if vector.adapter is not None:
            raise MismatchError(unplaced(vector, base, extra))
        raise MismatchError(_names(vector, base, extra, "has", list(base.tensors)))
    for name, part in vector.parts.items():
        tensor = base.tensors.get(name)
        if tensor is not None and (tensor.dtype.floating or vector.aligned or vector.adapter):
            _check_part(base, vector, tensor, part, shared_rows=shared_rows)
    check_integers(base, vector)
    for name, copy in vector.copies.items():
        check_copy(base, vector, name, copy)


def check_distinct(vectors: Iterable[Vector]) -> None:
    """Refuse one alignment vector under two names or paths. Raises RecipeError naming both."""
    seen: list[Vector] = []
    for vector in vectors:
        for other in seen:
            if vector.checkpoint.path.samefile(other.checkpoint.path):
                raise RecipeError(
                    f"--av {vector.name}: the same file or directory as {other.name}, expected "
                    "each alignment vector once; add the coefficients up"
                )
        seen.append(vector)


def _check_part(
    base: Checkpoint, vector: Vector, tensor: Tensor, part: Part, *, shared_rows: bool
) -> None:
    where = f"AV {vector.name} ({vector.checkpoint.path})"
    if part.shape != tensor.shape:
        rows = part.shape[1:] == tensor.shape[1:] and 1 <= len(part.shape) == len(tensor.shape) <= 2
        if shared_rows and rows:
            pass
        elif isinstance(part, LowRank):
            raise MismatchError(
                f"{where}: module {tensor.name.removesuffix('.weight')!r}: B@A of B "
                f"{part.b.name!r} {list(part.b.shape)} and A {part.a.name!r} "
                f"{list(part.a.shape)} has shape {list(part.shape)}, but in the base {base.path} "
                f"{tensor.name!r} has {list(tensor.shape)}; {_hint(part, tensor, rows=rows)}"
            )
        else:
            raise MismatchError(
                f"{where}: tensor {tensor.name!r} has shape {list(part.shape)}, but in the base "
                f"{base.path} it has {list(tensor.shape)}; {_hint(part, tensor, rows=rows)}"
            )
    if tensor.dtype.floating != part.computable:
        raise MismatchError(
            f"{where}: tensor {tensor.name!r} is {part}, "
            f"but in the base {base.path} it is {tensor}; floating tensors must be BF16, F16 or "
            "F32, and others the same kind in both"
        )


def _hint(part: Part, tensor: Tensor, *, rows: bool) -> str:
    if rows:
        return (
            "it has another vocabulary: resize it to the base's, or merge the rows that both "
            "have with --vocab base"
        )
    if isinstance(part, LowRank) and part.shape == tensor.shape[::-1]:
        return "it is the transpose: fan_in_fan_out in adapter_config.json is wrong"
    return "it belongs to another architecture or size"


def _names(
    vector: Vector, base: Checkpoint, names: Sequence[str], verb: str, others: Sequence[str]
) -> str:
    near = nearest(names[0], others)
    like = f" (nearest name there: {near!r})" if near else ""
    shown = ", ".join(repr(name) for name in names[:3]) + (", ..." if len(names) > 3 else "")
    flag = "--allow-missing" if verb == "lacks" else "--allow-extra"
    relation = "of the base" if verb == "lacks" else "that are not in the base"
    effect = "leaves them as in the base" if verb == "lacks" else "ignores them"
    return (
        f"AV {vector.name} ({vector.checkpoint.path}) {verb} {len(names)} tensors {relation} "
        f"{base.path}: {shown}{like}; is it the same architecture? {flag} {effect}"
    )
