"""linear: x @ weight.T + bias for several weights at once, as a layer's query, key and value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from avops.kernels import registry
from avops.kernels.linear.checks import Projection, Workspace, check_projection, check_rows
from avops.kernels.logprob.checks import check_threads_for

if TYPE_CHECKING:
    import torch

__all__ = ["Projection", "Workspace", "linear"]


def linear(
    x: torch.Tensor,
    projections: Sequence[Projection],
    *,
    workspace: Workspace | None = None,
    threads: int | None = None,
    backend: str | registry.Implementation | None = None,
) -> list[torch.Tensor]:
    """X @ weight.T + bias for each (weight, bias) of ``projections``.

    Shapes and dtypes
        x: [rows, dim]; weight: [outputs, dim]; bias: [outputs], or None. All f32 or all bf16,
        contiguous, aligned to their elements, on one device. Results: [rows, outputs].
    Numerics
        Sums are f32 from exact inputs: over dim in parts of 256, each part one chain of fused
        products (where the processor multiplies pairs of bf16, they are exact, and inputs and sums
        below 2⁻¹²⁶ count as 0), parts and then the bias added in order; rounded once. With
        u = 2⁻²⁴ and n = min(dim, 256) + dim / 256 + 2,
            |f32 result − exact| ≤ n·u·(Σ |x·w| + |bias|)
        An output's bits depend on its row of x and its row of weight only: not on other rows, on
        threads, or on where memory lies. NaN stays in its row.
    Errors
        TypeError, ValueError: what does not fit. BackendError: a forced backend cannot serve.
    Memory and bytes moved
        Allocates the results. Native: x is packed once into ``workspace`` (a new one if None) with
        up to 63 rows more; weights are read where they lie, once for each 256 rows.
    Source
        Blocked products from packed panels (Goto and van de Geijn, 10.1145/1356052.1356053), with
        rows as lanes, so that weights need no packing.
    """
    import torch

    check_rows(x)
    for number, (weight, bias) in enumerate(projections):
        check_projection(weight, bias, x.shape[1], x, f"projection {number}")
    count = check_threads_for(threads)
    implementation = registry.resolve("linear", backend, device=x.device.type)
    outs = [
        torch.empty(x.shape[0], weight.shape[0], dtype=x.dtype, device=x.device)
        for weight, _ in projections
    ]
    if x.shape[0]:
        implementation.run(x, projections, outs, workspace or Workspace(), count)
    return outs
