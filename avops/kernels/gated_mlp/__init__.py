"""gated_mlp: down(silu(gate(x)) · up(x)), the MLP of a Llama-like layer, whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

from avops.kernels import registry
from avops.kernels.linear.checks import Projection, Workspace, check_projection, check_rows
from avops.kernels.logprob.checks import check_threads_for

if TYPE_CHECKING:
    import torch

__all__ = ["gated_mlp"]


def gated_mlp(
    x: torch.Tensor,
    gate: Projection,
    up: Projection,
    down: Projection,
    *,
    workspace: Workspace | None = None,
    threads: int | None = None,
    backend: str | registry.Implementation | None = None,
) -> torch.Tensor:
    """``down`` of silu(``gate`` of x) · (``up`` of x), where silu(x) = x / (1 + e⁻ˣ).

    Shapes and dtypes
        x: [rows, dim]; weights of gate and up: [inner, dim], of down: [outputs, inner], each with a
        bias or None. All f32 or all bf16, contiguous, aligned to their elements, on one device.
        Result: [rows, outputs].
    Numerics
        Each product as in ``linear``, each element of silu(gate) · up as in ``swiglu``. Gate and up
        stay f32; the inner values are rounded once to the type, and so is the result.
        A row's bits depend on its row of x and the weights only. NaN stays in its row.
    Errors
        TypeError, ValueError: what does not fit. BackendError: a forced backend cannot serve.
    Memory and bytes moved
        Allocates the result. Native: x and the inner values are in ``workspace`` (a new one if
        None), each once, packed; gate and up never are in memory.
    Source
        Shazeer, arXiv 2002.05202 (SwiGLU).
    """
    import torch

    check_rows(x)
    check_projection(*gate, x.shape[1], x, "gate")
    check_projection(*up, x.shape[1], x, "up")
    inner = gate[0].shape[0]
    if up[0].shape[0] != inner:
        raise ValueError(f"up has {up[0].shape[0]} outputs, expected {inner} as gate")
    check_projection(*down, inner, x, "down")
    count = check_threads_for(threads)
    implementation = registry.resolve("gated_mlp", backend, device=x.device.type)
    out = torch.empty(x.shape[0], down[0].shape[0], dtype=x.dtype, device=x.device)
    if x.shape[0]:
        implementation.run(x, (gate, up, down), out, workspace or Workspace(), count)
    return out
