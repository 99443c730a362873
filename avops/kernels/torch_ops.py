"""combine as operators of torch, for torch.compile, make_fx and fake tensors.

Importing this module registers them; nothing else in avops imports it:

    import avops.kernels.torch_ops
    torch.ops.avops.combine(base, values, lams, aligned, dtype=torch.bfloat16)
    torch.ops.avops.combine_(out, base, values, lams, aligned)

The arithmetic is that of ``combine``, to the bit: base + Σ_k λ_k Δ_k with Δ_k = values[k], or
values[k] − base where aligned[k]. lams are double precision by torch's rules; each is rounded to
f32 once, and one that f32 cannot hold as a finite number is an error. A term whose λ is 0 is not
read. Tensors have the base's shape, and are f32, f16 or bf16 in any mix; CPU tensors go to
combine's backend, CUDA tensors to combine_many's. Whoever combines the same CUDA tensors many
times makes a ``combine_many`` table of them instead: here one is made for every call, which waits
for the device.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from avops.kernels.combine import combine as combine_operands
from avops.kernels.many import Entry, Table, Values
from avops.kernels.many.checks import dtype_of
from avops.kernels.operands import Operand, Term

__all__ = ["combine", "combine_"]

# Making a table waits for the device, which a capture does not allow.
_TAGS = (torch.Tag.cudagraph_unsafe,)
_TERMS = "Tensor base, Tensor[] values, float[] lams, bool[] aligned"


@torch.library.custom_op(
    "avops::combine_",
    mutates_args=("out",),
    schema=f"(Tensor(a!) out, {_TERMS}) -> ()",
    tags=_TAGS,
)
def combine_(
    out: torch.Tensor,
    base: torch.Tensor,
    values: Sequence[torch.Tensor],
    lams: Sequence[float],
    aligned: Sequence[bool],
) -> None:
    """Write base + Σ_k λ_k Δ_k to out, which is exactly base or overlaps no input."""
    _check(out, base, values, lams, aligned)
    whole = out if out.is_contiguous() else torch.empty_like(out, memory_format=_CONTIGUOUS)
    run = _on_host if out.device.type == "cpu" else _on_device
    # What is in place stays so: a contiguous base is its own contiguous().
    run(
        whole,
        base.contiguous(),
        [(tensor.contiguous(), lam, how) for tensor, lam, how in _terms(values, lams, aligned)],
    )
    if whole is not out:
        out.copy_(whole)


@torch.library.custom_op(
    "avops::combine",
    mutates_args=(),
    schema=f"({_TERMS}, *, ScalarType? dtype=None) -> Tensor",
    tags=_TAGS,
)
def combine(
    base: torch.Tensor,
    values: Sequence[torch.Tensor],
    lams: Sequence[float],
    aligned: Sequence[bool],
    *,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Base + Σ_k λ_k Δ_k as a new tensor of ``dtype``, the base's if None."""
    out = torch.empty_like(base, dtype=dtype, memory_format=_CONTIGUOUS)
    combine_(out, base, values, lams, aligned)
    return out


@combine_.register_fake
def _(
    out: torch.Tensor,
    base: torch.Tensor,
    values: Sequence[torch.Tensor],
    lams: Sequence[float],
    aligned: Sequence[bool],
) -> None:
    _check(out, base, values, lams, aligned)


@combine.register_fake
def _(
    base: torch.Tensor,
    values: Sequence[torch.Tensor],
    lams: Sequence[float],
    aligned: Sequence[bool],
    *,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    out = torch.empty_like(base, dtype=dtype, memory_format=_CONTIGUOUS)
    _check(out, base, values, lams, aligned)
    return out


_CONTIGUOUS = torch.contiguous_format
_Terms = list[tuple[torch.Tensor, float, bool]]


def _check(
    out: torch.Tensor,
    base: torch.Tensor,
    values: Sequence[torch.Tensor],
    lams: Sequence[float],
    aligned: Sequence[bool],
) -> None:
    """What holds for fake tensors, too: numbers of terms, dtypes, shapes, devices."""
    if not len(values) == len(lams) == len(aligned):
        raise ValueError(
            f"{len(values)} values, {len(lams)} lams and {len(aligned)} aligned, expected one "
            "of each for each term"
        )
    for name, tensor in (("out", out), ("base", base), *_named(values)):
        if dtype_of(tensor) is None:
            raise TypeError(
                f"{name} has dtype {tensor.dtype}, expected float32, float16 or bfloat16"
            )
        if tensor.shape != base.shape or tensor.device != base.device:
            raise ValueError(
                f"{name} is {list(tensor.shape)} on {tensor.device}, expected "
                f"{list(base.shape)} on {base.device} as base"
            )


def _named(values: Sequence[torch.Tensor]) -> list[tuple[str, torch.Tensor]]:
    return [(f"values[{index}]", tensor) for index, tensor in enumerate(values)]


def _terms(
    values: Sequence[torch.Tensor], lams: Sequence[float], aligned: Sequence[bool]
) -> _Terms:
    """The terms that count, λ rounded to f32."""
    terms = []
    for index, (tensor, lam, how) in enumerate(zip(values, lams, aligned, strict=True)):
        with np.errstate(over="ignore"):
            rounded = float(np.float32(lam))
        if not np.isfinite(rounded):
            raise ValueError(f"lams[{index}] is {lam}, expected a number that is finite in f32")
        if rounded:
            terms.append((tensor, rounded, how))
    return terms


def _on_host(out: torch.Tensor, base: torch.Tensor, terms: _Terms) -> None:
    combine_operands(
        _operand(base),
        [Term(_operand(tensor), lam, how) for tensor, lam, how in terms],
        _operand(out),
        threads=torch.get_num_threads(),
    )


def _on_device(out: torch.Tensor, base: torch.Tensor, terms: _Terms) -> None:
    parts = tuple(Values(tensor, how) for tensor, _, how in terms)
    Table([Entry(base, out, parts)]).run([lam for _, lam, _ in terms])


def _operand(tensor: torch.Tensor) -> Operand:
    """A flat view of a contiguous tensor's memory: numpy has no bf16."""
    dtype = dtype_of(tensor)
    assert dtype is not None
    raw = tensor.detach().reshape(-1).view(torch.uint8).numpy()
    return Operand(raw.view(dtype.storage), dtype)
