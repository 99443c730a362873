"""gated_mlp in torch and f64: the contract, spelled out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from avops.kernels.linear.reference import available, exact

if TYPE_CHECKING:
    import torch

    from avops.kernels.linear import Projection, Workspace

__all__ = ["available", "run"]


def run(
    x: torch.Tensor,
    projections: tuple[Projection, Projection, Projection],
    out: torch.Tensor,
    workspace: Workspace,  # noqa: ARG001 - torch's own
    threads: int,  # noqa: ARG001 - torch's own
) -> None:
    """Write out."""
    wide = x.double()
    gate, up = (exact(wide, projection) for projection in projections[:2])
    inner = (gate / (1 + (-gate).exp()) * up).float().to(x.dtype).double()
    out.copy_(exact(inner, projections[2]).float())
