"""linear in C++: csrc/linear.cpp, through avops._native. Releases the GIL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from avops.kernels import extension
from avops.kernels.many.checks import dtype_of
from avops.kernels.tree_attention.native import AVX512, AVX512_BF16, available

if TYPE_CHECKING:
    import torch

    from avops.kernels.linear import Projection, Workspace

__all__ = ["DEVICES", "available", "faster", "run", "serves"]

DEVICES = ("cpu",)


def serves(dtype: torch.dtype) -> bool:
    """Whether it computes in ``dtype`` on this processor."""
    import torch

    wanted = {torch.float32: AVX512, torch.bfloat16: AVX512_BF16}.get(dtype)
    return wanted is not None and getattr(extension.NATIVE, "HEAD_PATH", -1) >= wanted


def faster(dtype: torch.dtype) -> bool:
    """Whether it serves, on a processor where it was measured to be ahead of torch's products.

    Those are AMD's. On Intel's, torch takes the processor's maker's own code, and bf16 tiles (AMX).
    """
    return serves(dtype) and getattr(extension.NATIVE, "AMD", 0) == 1


def run(
    x: torch.Tensor,
    projections: Sequence[Projection],
    outs: Sequence[torch.Tensor],
    workspace: Workspace,
    threads: int,
) -> None:
    """Write outs."""
    code, rows, dim = described(x)
    native = extension.NATIVE
    native.linear(  # type: ignore[union-attr]
        code,
        x.data_ptr(),
        rows,
        dim,
        tuple(arguments(part, out) for part, out in zip(projections, outs, strict=True)),
        workspace.address(native.packed_bytes(code, rows, dim)),  # type: ignore[union-attr]
        threads,
    )


def described(x: torch.Tensor) -> tuple[int, int, int]:
    """Code of the dtype, rows and columns of an input; refuses what this processor cannot."""
    if not serves(x.dtype):
        raise ValueError(
            f"the native products take no {x.dtype} on this processor; leave backend out"
        )
    dtype = dtype_of(x)
    assert dtype is not None
    return dtype.code, x.shape[0], x.shape[1]


def arguments(projection: Projection, out: torch.Tensor | None) -> tuple[int, int, int, int]:
    """What csrc/avops.h calls an avops_projection."""
    weight, bias = projection
    return (
        weight.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        0 if out is None else out.data_ptr(),
        weight.shape[0],
    )
