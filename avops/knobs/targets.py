"""Which parameter or buffer is which tensor of the base, and which models are refused."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from avops.disk import Checkpoint, Tensor, touched
from avops.dtypes import COMPUTABLE, F32, DType
from avops.errors import MismatchError, UserError
from avops.kernels import dither_key
from avops.knobs.mapped import Mapped, MappedVector
from avops.knobs.ties import check_tied, check_unused

if TYPE_CHECKING:
    import torch

# What torch.compile puts into the names of a module that it wraps.
_COMPILED = "_orig_mod"


@dataclass(frozen=True, eq=False)
class Place:
    """Where a model holds a tensor: ``module``'s parameter or buffer ``key``."""

    module: torch.nn.Module
    key: str
    parameter: bool

    @property
    def tensor(self) -> torch.Tensor | None:
        """What is there now."""
        found: torch.Tensor | None = getattr(self.module, self.key, None)
        return found


@dataclass(frozen=True, eq=False)
class Target:
    """A parameter or buffer, once however many names it is tied to.

    names: the base's names of it, in file order. dtype: what results are rounded to. key: of
    dithered rounding, None for nearest.
    """

    names: tuple[str, ...]
    tensor: torch.Tensor
    base: Tensor
    dtype: DType
    key: int | None = None

    @property
    def name(self) -> str:
        """The first name."""
        return self.names[0]

    @property
    def direct(self) -> bool:
        """Whether the model holds it in the dtype that results are rounded to."""
        return str(self.tensor.dtype) == f"torch.{self.dtype.torch}"

    @property
    def kept(self) -> bool:
        """Whether it is the base's bytes (perhaps widened) where no term touches it."""
        return self.base.dtype == self.dtype


def check_ready(model: torch.nn.Module) -> None:
    """Refuse a model in training mode. Raises UserError."""
    if model.training:
        raise UserError(
            f"the {type(model).__name__} is in training mode: its weights belong to an optimiser; "
            "call model.eval() first"
        )


def find_targets(
    model: torch.nn.Module,
    base: Mapped,
    vectors: Mapping[str, MappedVector],
    seed: int | None,
) -> tuple[Target, ...]:
    """One target per storage, in the base's file order: tied weights are set once.

    seed: of dithered rounding, None for nearest. Raises MismatchError where model, base and
    vectors do not fit.
    """
    named, checkpoint = named_places(model), base.checkpoint
    found: dict[object, tuple[list[str], torch.Tensor]] = {}
    for source in touched(checkpoint):
        name = source.name
        if name not in named:
            check_unused(name, model, base, vectors)
            continue
        tensor = named[name][0].tensor
        assert tensor is not None
        _check_target(name, tensor, checkpoint)
        names, _ = found.setdefault(_storage(name, tensor), ([], tensor))
        if names:
            check_tied(name, names[0], base, vectors)
        names.append(name)
    for name, places in named.items():
        tensor = places[0].tensor
        if tensor is not None and places[0].parameter and tensor.numel():
            _check_kind(name, tensor)
            if _storage(name, tensor) not in found:
                raise MismatchError(
                    f"{checkpoint.path}: lacks the model's parameter {name!r}, so it cannot be "
                    "set; give the checkpoint that the model was loaded from"
                )
    targets = [_target(names, tensor, checkpoint, seed) for names, tensor in found.values()]
    _check_apart(targets)
    return tuple(targets)


def _target(
    names: Sequence[str],
    tensor: torch.Tensor,
    checkpoint: Checkpoint,
    seed: int | None,
) -> Target:
    source = checkpoint.tensors[names[0]]
    theirs = next(d for d in COMPUTABLE if str(tensor.dtype) == f"torch.{d.torch}")
    # A model in float32 holds what the checkpoint's dtype would, widened. Any other one gets what
    # a merge with its dtype writes.
    dtype = source.dtype if theirs == F32 else theirs
    key = None
    if seed is not None and dtype != F32:
        key = dither_key(seed, names[0])
        if len(names) > 1:
            raise MismatchError(
                f"{checkpoint.path}: {names[1]!r} and {names[0]!r} would be dithered apart, each "
                "by its name, but the model ties them to one parameter; use rounding='nearest', "
                "or a base that holds one of them"
            )
    return Target(tuple(names), tensor, source, dtype, key)


def named_places(model: torch.nn.Module) -> dict[str, list[Place]]:
    """Parameters and buffers by the checkpoint's names for them."""
    named: dict[str, list[Place]] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        steps = [step for step in prefix.split(".") if step and step != _COMPILED]
        alone = {"recurse": False, "remove_duplicate": False}
        found = [(key, True) for key, _ in module.named_parameters(**alone)]
        found += [(key, False) for key, _ in module.named_buffers(**alone)]
        for key, parameter in found:
            named.setdefault(".".join([*steps, key]), []).append(Place(module, key, parameter))
    return named


def _storage(name: str, tensor: torch.Tensor) -> object:
    if not tensor.numel():
        return name
    return tensor.device, tensor.data_ptr(), tensor.nbytes, tensor.dtype


def _check_kind(name: str, tensor: torch.Tensor) -> None:
    import torch

    if type(tensor) not in (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer):
        raise MismatchError(
            f"model parameter {name!r} is a {type(tensor).__name__}, expected a plain torch "
            "tensor: sharded (FSDP, DTensor) and quantised parameters are not supported; set the "
            "knobs before wrapping the model, or use `avops merge`"
        )


def _check_target(name: str, tensor: torch.Tensor, checkpoint: Checkpoint) -> None:
    _check_kind(name, tensor)
    theirs = checkpoint.tensors[name]
    known = {d.torch for d in COMPUTABLE}
    fits = tuple(tensor.shape) == theirs.shape and str(tensor.dtype).split(".")[-1] in known
    if not fits or tensor.device.type == "meta" or not tensor.is_contiguous():
        raise MismatchError(
            f"model parameter {name!r} is {tensor.dtype} {list(tensor.shape)} on {tensor.device}"
            f"{'' if tensor.is_contiguous() else ', not contiguous'}, "
            f"but {checkpoint.path} has {theirs}; expected the same shape, a floating dtype, and "
            "contiguous memory of a device"
        )


def _check_apart(targets: Sequence[Target]) -> None:
    """Refuse parameters that share a part of their memory."""
    ranges = sorted(_ranges(targets), key=lambda item: item[:3])
    for (device, _, end, one), (other, start, _, two) in itertools.pairwise(ranges):
        if device == other and start < end:
            raise MismatchError(
                f"model parameters {one!r} and {two!r} share a part of their memory, expected "
                "tensors that are tied as a whole or not at all"
            )


def _ranges(targets: Sequence[Target]) -> Iterator[tuple[str, int, int, str]]:
    for target in targets:
        if target.tensor.numel():
            start = target.tensor.data_ptr()
            end = start + target.tensor.nbytes
            yield str(target.tensor.device), start, end, target.name
