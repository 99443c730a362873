"""linear in torch and f64: the contract, spelled out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from avops.kernels.logprob.reference import available

if TYPE_CHECKING:
    import torch

    from avops.kernels.linear import Projection, Workspace

__all__ = ["available", "exact", "run"]


def run(
    x: torch.Tensor,
    projections: Sequence[Projection],
    outs: Sequence[torch.Tensor],
    workspace: Workspace,  # noqa: ARG001 - torch's own
    threads: int,  # noqa: ARG001 - torch's own
) -> None:
    """Write outs."""
    for projection, out in zip(projections, outs, strict=True):
        out.copy_(exact(x.double(), projection).float())


def exact(wide: torch.Tensor, projection: Projection) -> torch.Tensor:
    """An f64 input projected in f64."""
    weight, bias = projection
    product = wide @ weight.double().T
    return product if bias is None else product + bias.double()
