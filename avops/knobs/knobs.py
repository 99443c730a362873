"""Knobs: θ(λ) in a live model, in place, always from the pristine base.

Adding and subtracting rounded deltas drifts, so every ``set`` computes base + Σ λ·AV anew.
The weights are those `avops merge` writes for the same recipe, then widened (exactly) if the
model computes in a wider dtype than the checkpoint's.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING

import numpy as np

from avops import env
from avops.disk import (
    Checkpoint,
    Vector,
    check_distinct,
    check_vector,
    open_checkpoint,
    open_vector,
)
from avops.dtypes import COMPUTABLE, DType
from avops.errors import AvopsError, MismatchError, NonFiniteError, RecipeError
from avops.kernels import Operand, Term, combine
from avops.knobs.mapped import Mapped, MappedVector
from avops.recipe import round_f32

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class _Target:
    """A parameter or buffer of the model and the pristine base tensor it starts from."""

    name: str
    tensor: torch.Tensor
    base: Operand


class Knobs:
    """Alignment vectors as dials on ``model``.

    model: a torch module whose parameter names are the checkpoint's. avs: name to path or opened
    vector: delta file, aligned checkpoint or LoRA adapter. base: the checkpoint the weights come
    from (path or opened); its dtype is the one that results are rounded to. Files are
    memory-mapped and stay open; an adapter's differences are computed anew by each ``set``.
    Raises MismatchError when model, base and vectors do not fit, RecipeError for one vector under
    two names.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        avs: Mapping[str, Vector | str | os.PathLike[str]],
        *,
        base: Checkpoint | str | os.PathLike[str],
        allow_nonfinite: bool = False,
    ) -> None:
        checkpoint = base if isinstance(base, Checkpoint) else open_checkpoint(base)
        self._allow_nonfinite = allow_nonfinite
        self._vectors = {
            name: av if isinstance(av, Vector) else open_vector(name, av)
            for name, av in avs.items()
        }
        check_distinct(self._vectors.values())
        for vector in self._vectors.values():
            check_vector(checkpoint, vector)
        self._mapped = {name: MappedVector(vector) for name, vector in self._vectors.items()}
        self._targets = _targets(model, checkpoint, self._mapped)
        self._staging: dict[DType, np.ndarray] = {}
        self._state: dict[str, float] | None = None
        self.set()

    @property
    def names(self) -> tuple[str, ...]:
        """The dials."""
        return tuple(self._vectors)

    @property
    def state(self) -> Mapping[str, float]:
        """The coefficients of what is loaded (float32 values).

        Raises AvopsError when the last ``set`` failed halfway: the weights are then mixed.
        """
        if self._state is None:
            raise AvopsError(
                "the model's weights are mixed, since the last Knobs.set() failed halfway; "
                "call set() again before using the model"
            )
        return dict(self._state)

    def set(self, lams: Mapping[str, float] | None = None, **more: float) -> None:
        """Load θ(λ) in place; a dial that is not named is 0. Terms are added in dial order.

        Raises RecipeError for an unknown dial or a λ that is not finite, NonFiniteError when a
        weight becomes NaN or infinite.
        """
        wanted = {**(lams or {}), **more}
        exact = {name: self._lam(name, value) for name, value in wanted.items()}
        state = {name: exact.get(name, 0.0) for name in self._vectors}
        self._state = None
        for target in self._targets:
            dials = [
                (self._mapped[name], lam)
                for name, lam in state.items()
                if lam and target.name in self._mapped[name]
            ]
            self._load(target, dials)
        self._state = state

    @contextlib.contextmanager
    def at(self, lams: Mapping[str, float] | None = None, **more: float) -> Iterator[None]:
        """``set`` for the length of a ``with`` block, then back to what was loaded before."""
        before = self.state
        try:
            self.set(lams, **more)
            yield
        finally:
            self.set(before)

    def _lam(self, name: str, value: float) -> float:
        if name not in self._vectors:
            raise RecipeError(f"no dial {name!r}, expected one of {', '.join(self._vectors)}")
        try:
            return round_f32(Decimal(repr(float(value))))
        except (TypeError, ValueError, OverflowError, ArithmeticError):
            raise RecipeError(
                f"dial {name}: λ is {value!r}, expected a number that is finite in float32"
            ) from None

    def _load(self, target: _Target, dials: list[tuple[MappedVector, float]]) -> None:
        import torch

        dtype, count = target.base.dtype, target.base.array.size
        direct = target.tensor.device.type == "cpu" and target.tensor.dtype == _torch(dtype)
        if direct:
            raw = target.tensor.detach().view(-1).view(torch.uint8).numpy()
        else:
            raw = self._buffer(dtype, count)[: count * dtype.size]
        out = Operand(raw.view(dtype.storage), dtype)
        nonfinite = _combine(target, dials, out)
        if nonfinite and not self._allow_nonfinite:
            raise NonFiniteError(
                f"tensor {target.name!r} would hold {nonfinite} values that are NaN or "
                f"infinite at λ = {[lam for _, lam in dials]}; lower λ or repair the input"
            )
        if not direct:
            host = torch.from_numpy(raw).view(_torch(dtype)).view(target.tensor.shape)
            with torch.no_grad():
                target.tensor.copy_(host)

    def _buffer(self, dtype: DType, count: int) -> np.ndarray:
        size = count * dtype.size
        if dtype not in self._staging or self._staging[dtype].nbytes < size:
            largest = max(
                target.base.array.nbytes for target in self._targets if target.base.dtype == dtype
            )
            self._staging[dtype] = np.empty(max(size, largest), np.uint8)
        return self._staging[dtype]


def _combine(target: _Target, dials: list[tuple[MappedVector, float]], out: Operand) -> int:
    """θ(λ) of one tensor: whole, or in pieces where differences are computed on the way.

    Returns how many values are not finite.
    """
    name, count, threads = target.name, target.base.array.size, env.threads()
    piece = min((av.chunk for av, _ in dials if av.low_rank(name)), default=max(count, 1))
    nonfinite = 0
    for start in range(0, count, piece):
        size = min(piece, count - start)
        terms = [
            Term(av.values(name, start, size, threads=threads), lam, av.aligned(name))
            for av, lam in dials
        ]
        base, end = target.base, start + size
        stats = combine(
            Operand(base.array[start:end], base.dtype),
            terms,
            Operand(out.array[start:end], out.dtype),
            threads=threads,
        )
        nonfinite += stats.nonfinite
    return nonfinite


def _torch(dtype: DType) -> torch.dtype:
    import torch

    found: torch.dtype = getattr(torch, dtype.torch or "")
    return found


def _targets(
    model: torch.nn.Module, checkpoint: Checkpoint, vectors: Mapping[str, MappedVector]
) -> tuple[_Target, ...]:
    """One target per storage: tied weights are set once."""
    base = Mapped(checkpoint)
    named: dict[str, torch.Tensor] = dict(model.named_parameters(remove_duplicate=False))
    named.update(model.named_buffers(remove_duplicate=False))
    targets: dict[object, _Target] = {}
    for name, operand in base.operands.items():
        if name not in named:
            _check_unused(name, model, checkpoint, vectors)
            continue
        tensor = named[name]
        _check_target(name, tensor, checkpoint)
        storage = (tensor.device, tensor.data_ptr()) if tensor.numel() else name
        if storage in targets:
            _check_tied(name, targets[storage].name, base, vectors)
        else:
            targets[storage] = _Target(name, tensor, operand)
    for name, tensor in model.named_parameters(remove_duplicate=False):
        if tensor.numel() and (tensor.device, tensor.data_ptr()) not in targets:
            raise MismatchError(
                f"{checkpoint.path}: lacks the model's parameter {name!r}, so it cannot be set; "
                "give the checkpoint that the model was loaded from"
            )
    return tuple(targets.values())


def _check_unused(
    name: str, model: torch.nn.Module, checkpoint: Checkpoint, vectors: Mapping[str, MappedVector]
) -> None:
    """A tensor that the model does not hold (an old buffer, say) may not be moved by a vector."""
    base = Mapped(checkpoint).operands[name]
    for av, mapped in vectors.items():
        if any(map(np.any, mapped.deltas(name, base))):
            raise MismatchError(
                f"{checkpoint.path}: tensor {name!r} has no parameter of that name in the "
                f"{type(model).__name__}, and AV {av} changes it; expected the names of "
                "model.state_dict()"
            )


def _check_tied(name: str, other: str, base: Mapped, vectors: Mapping[str, MappedVector]) -> None:
    """Tied in the model means one value: the files' two must agree, and move alike, bit for bit."""
    one, two = base.operands[name], base.operands[other]
    if one.array.tobytes() != two.array.tobytes():
        raise MismatchError(_apart(name, other, "the base", base.checkpoint))
    for av, mapped in vectors.items():
        pairs = zip(mapped.deltas(name, one), mapped.deltas(other, two), strict=True)
        if any(left.tobytes() != right.tobytes() for left, right in pairs):
            raise MismatchError(_apart(name, other, f"AV {av}", mapped.vector.checkpoint))


def _apart(name: str, other: str, who: str, checkpoint: Checkpoint) -> str:
    return (
        f"{checkpoint.path}: {name!r} and {other!r} differ in {who}, but the model ties them to "
        "one parameter; write the merge with `avops merge` and load that"
    )


def _check_target(name: str, tensor: torch.Tensor, checkpoint: Checkpoint) -> None:
    theirs = checkpoint.tensors[name]
    known = {d.torch for d in COMPUTABLE}
    fits = tuple(tensor.shape) == theirs.shape and str(tensor.dtype).split(".")[-1] in known
    if not fits or tensor.device.type == "meta" or not tensor.is_contiguous():
        raise MismatchError(
            f"model parameter {name!r} is {tensor.dtype} {list(tensor.shape)} on {tensor.device}, "
            f"but {checkpoint.path} has {theirs}; expected the same shape, a floating dtype, and "
            "contiguous memory"
        )
