"""rope: rotary positions, in place: each head's halves turned by the angles of their row."""

from __future__ import annotations

from typing import TYPE_CHECKING

from avops.kernels import registry
from avops.kernels.logprob.checks import check_threads_for

if TYPE_CHECKING:
    import torch

__all__ = ["rope"]


def rope(
    x: torch.Tensor,
    cosine: torch.Tensor,
    sine: torch.Tensor,
    *,
    threads: int | None = None,
    backend: str | registry.Implementation | None = None,
) -> torch.Tensor:
    """``x`` with x · cosine + turned(x) · sine in it, where turned is (−second half, first half).

    Shapes and dtypes
        x: [rows, heads, size], size even; cosine and sine: [rows, size]. Contiguous, all f32 or
        all bf16, on one device; at any alignment.
    Numerics
        Two products and their sum in f32, each rounded, then rounded to the type: in f32 the bits
        of torch's own expression.
    Errors
        TypeError, ValueError: what does not fit. BackendError: a forced backend cannot serve.
    Memory and bytes moved
        Nothing is allocated (native, Triton). Reads and writes x.
    """
    import torch

    parts = {"x": x, "cosine": cosine, "sine": sine}
    for name, part in parts.items():
        if part.dtype != x.dtype or part.dtype not in (torch.float32, torch.bfloat16):
            raise TypeError(
                f"{name} is {part.dtype} and x {x.dtype}, expected all float32 or all bfloat16"
            )
        if not part.is_contiguous() or part.device != x.device:
            raise ValueError(
                f"{name} has strides {list(part.stride())} on {part.device}, expected contiguous "
                f"on {x.device}; pass {name}.contiguous()"
            )
    if x.dim() != 3 or x.shape[2] % 2 or not cosine.shape == sine.shape == x.shape[::2]:
        raise ValueError(
            f"x, cosine and sine have shapes {list(x.shape)}, {list(cosine.shape)} and "
            f"{list(sine.shape)}, expected [rows, heads, size] and twice [rows, size], size even"
        )
    count = check_threads_for(threads)
    implementation = registry.resolve("rope", backend, device=x.device.type)
    if x.numel():
        implementation.run(x, cosine, sine, count)
    return x
