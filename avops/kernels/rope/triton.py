"""rope in Triton: triton_kernels.py, some heads of a row a program.

Compiled for CUDA devices; with TRITON_INTERPRET=1 interpreted, on CPU tensors, for tests.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from avops.kernels.many import triton as many
from avops.kernels.many.triton import available
from avops.kernels.triton_patterns import computing, patterns

if TYPE_CHECKING:
    import torch

__all__ = ["available", "run"]

# Elements of half the heads of a program: 8 of each half for a thread.
SIZE = 1024


def __getattr__(name: str) -> Any:
    """DEVICES: what the kernels compute on; asked for late, since the answer needs Triton."""
    if name == "DEVICES":
        return many.DEVICES
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def run(
    x: torch.Tensor,
    cosine: torch.Tensor,
    sine: torch.Tensor,
    threads: int,  # noqa: ARG001 - for CPUs
) -> None:
    """Write x, on the current stream."""
    from avops.kernels.rope import triton_kernels

    rows, heads, size = x.shape
    half = 1 << (size // 2 - 1).bit_length()
    some = min(max(1, SIZE // half), 1 << (heads - 1).bit_length())
    parts = -(-heads // some)
    with computing(x) as interpreted:
        triton_kernels.turn[(rows * parts,)](
            patterns(x),
            patterns(cosine),
            patterns(sine),
            heads,
            size // 2,
            parts,
            HEADS=some,
            HALF=half,
            EXACT=interpreted,
            num_warps=max(1, min(4, some * half // 256)),
            enable_fp_fusion=False,
        )
