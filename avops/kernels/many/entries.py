"""What combine_many works on: tensors of a device, by name of their part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, eq=False)
class Values:
    """Stored differences, or weights of an aligned checkpoint.

    tensor: contiguous, F32, F16 or BF16, as many elements as the base. aligned: False: Δ; True:
    Δ = f32(tensor) − f32(base), computed on the fly.
    """

    tensor: torch.Tensor
    aligned: bool


@dataclass(frozen=True, eq=False)
class LowRank:
    """Δ = scale · left @ right, never stored. left: [rows, rank], right: [rank, columns].

    Both f32 and contiguous; rows · columns is the base's number of elements; scale is exact in f32.
    """

    left: torch.Tensor
    right: torch.Tensor
    scale: float


@dataclass(frozen=True, eq=False)
class Entry:
    """One tensor: its pristine base, where θ(λ) goes, and what each alignment vector has for it.

    base, out: contiguous, one number of elements, each F32, F16 or BF16. parts: one for each
    alignment vector, None where it leaves the tensor alone. key: of dithered rounding (see
    ``dither_key``), None to round to nearest, ties to even.
    """

    base: torch.Tensor
    out: torch.Tensor
    parts: tuple[Values | LowRank | None, ...]
    key: int | None = None
