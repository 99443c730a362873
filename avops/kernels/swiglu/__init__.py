"""swiglu: gate = silu(gate) · up in place, what a gated MLP does between its projections."""

from __future__ import annotations

from typing import TYPE_CHECKING

from avops.kernels import registry
from avops.kernels.logprob.checks import check_threads_for, memory_of

if TYPE_CHECKING:
    import torch

__all__ = ["swiglu"]


def swiglu(
    gate: torch.Tensor,
    up: torch.Tensor,
    *,
    threads: int | None = None,
    backend: str | registry.Implementation | None = None,
) -> torch.Tensor:
    """``gate`` with silu(gate) · up in it, where silu(x) = x / (1 + e⁻ˣ).

    Shapes and dtypes
        gate and up: of one shape, contiguous, both f32 or both bf16, on one device, without
        overlap; at any alignment.
    Numerics
        Computed in f32 and rounded once to the type. With u = 2⁻²⁴,
            |f32 result − exact| ≤ 7·u·|exact| + 2⁻¹²⁶
        so long as gate ≥ −87; below, silu is 0, and exactly at most 1.5e-36 in magnitude. Triton:
        10 + 2·max(0, −gate) for 7, and below −87 anything from exact to 0. An element's bits depend
        on gate and up there alone. NaN where either is, or 0 · ∞.
        silu(−∞) is NaN, as −∞ · 0 is.
    Errors
        TypeError, ValueError: what does not fit. BackendError: a forced backend cannot serve.
    Memory and bytes moved
        Nothing is allocated (native, Triton). Reads both, writes gate.
    """
    import torch

    if gate.dtype != up.dtype or gate.dtype not in (torch.float32, torch.bfloat16):
        raise TypeError(
            f"gate is {gate.dtype} and up {up.dtype}, expected both float32 or both bfloat16"
        )
    if gate.shape != up.shape or not gate.is_contiguous() or not up.is_contiguous():
        raise ValueError(
            f"gate has shape {list(gate.shape)} and up {list(up.shape)}, expected one shape, both "
            "contiguous; pass .contiguous()"
        )
    if gate.device != up.device:
        raise ValueError(f"gate is on {gate.device} and up on {up.device}, expected one device")
    (start, end), (first, last) = memory_of(gate), memory_of(up)
    if start < last and first < end:
        raise ValueError("gate overlaps up; give it memory of its own")
    count = check_threads_for(threads)
    implementation = registry.resolve("swiglu", backend, device=gate.device.type)
    if gate.numel():
        implementation.run(gate, up, count)
    return gate
