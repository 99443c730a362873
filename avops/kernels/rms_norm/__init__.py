"""rms_norm: rows over the root of their mean square, times a weight."""

from __future__ import annotations

from typing import TYPE_CHECKING

from avops.kernels import registry
from avops.kernels.logprob.checks import check_matrix, check_threads_for

if TYPE_CHECKING:
    import torch

__all__ = ["rms_norm"]


def rms_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    epsilon: float,
    *,
    threads: int | None = None,
    backend: str | registry.Implementation | None = None,
) -> torch.Tensor:
    """Row by row, weight · x / √(mean(x²) + epsilon).

    Shapes and dtypes
        x: [rows, n]; weight: [n]. Contiguous, both f32 or both bf16, on one device.
    Numerics
        Computed in f32 and rounded once to the type. Squares are summed in 64 chains (Triton: one
        for each thread), added up pairwise. With u = 2⁻²⁴,
            |f32 result − exact| ≤ (n/128 + 10)·u·|exact|
        so long as the sum of squares is finite in f32 and no product is subnormal. A row's bits
        depend on that row and the weight alone. NaN where a row has one.
    Errors
        TypeError, ValueError: what does not fit. BackendError: a forced backend cannot serve.
    Memory and bytes moved
        Allocates the result. Reads x twice, the second time from the cache.
    """
    import torch

    check_matrix(x, "x")
    if weight.dtype != x.dtype or x.dtype not in (torch.float32, torch.bfloat16):
        raise TypeError(
            f"x is {x.dtype} and weight {weight.dtype}, expected both float32 or both bfloat16"
        )
    fits = weight.shape == x.shape[1:] and weight.is_contiguous() and weight.device == x.device
    if not fits:
        raise ValueError(
            f"weight has shape {list(weight.shape)} on {weight.device}, expected [{x.shape[1]}] on "
            f"{x.device}, contiguous"
        )
    count = check_threads_for(threads)
    implementation = registry.resolve("rms_norm", backend, device=x.device.type)
    out = torch.empty_like(x)
    if x.shape[0]:
        implementation.run(x, weight, epsilon, out, count)
    return out
