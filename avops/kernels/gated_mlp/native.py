"""gated_mlp in C++: csrc/linear.cpp, through avops._native. Releases the GIL."""

from __future__ import annotations

from typing import TYPE_CHECKING

from avops.kernels import extension
from avops.kernels.linear.native import DEVICES, arguments, available, described

if TYPE_CHECKING:
    import torch

    from avops.kernels.linear import Projection, Workspace

__all__ = ["DEVICES", "available", "run"]


def run(
    x: torch.Tensor,
    projections: tuple[Projection, Projection, Projection],
    out: torch.Tensor,
    workspace: Workspace,
    threads: int,
) -> None:
    """Write out."""
    code, rows, dim = described(x)
    gate, up, down = projections
    native = extension.NATIVE
    room = sum(
        native.packed_bytes(code, rows, width)  # type: ignore[union-attr]
        for width in (dim, gate[0].shape[0])
    )
    native.gated_mlp(  # type: ignore[union-attr]
        code,
        x.data_ptr(),
        rows,
        dim,
        arguments(gate, None),
        arguments(up, None),
        arguments(down, out),
        workspace.address(room),
        threads,
    )
