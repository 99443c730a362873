"""rms_norm in Triton: triton_kernels.py, a row a program.

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

# Elements of a step, at most. A longer row is read twice.
STEP = 8192


def __getattr__(name: str) -> Any:
    """DEVICES: what the kernels compute on; asked for late, since the answer needs Triton."""
    if name == "DEVICES":
        return many.DEVICES
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def run(
    x: torch.Tensor,
    weight: torch.Tensor,
    epsilon: float,
    out: torch.Tensor,
    threads: int,  # noqa: ARG001 - for CPUs
) -> None:
    """Write out, on the current stream."""
    from avops.kernels.rms_norm import triton_kernels

    rows, columns = x.shape
    # Code for memory that is less even sums in another order: bits would depend on the address.
    x, weight = (part.clone() if part.data_ptr() % 16 else part for part in (x, weight))
    with computing(x) as interpreted:
        triton_kernels.norm[(rows,)](
            patterns(x),
            patterns(weight),
            patterns(out),
            epsilon,
            columns,
            **sizes(columns),
            EXACT=interpreted,
            enable_fp_fusion=False,
        )


def sizes(columns: int) -> dict[str, int]:
    """Elements of a step, and warps: what a row's bits depend on, so by the columns alone.

    A sum has a chain for each thread, of 4 squares up to 1,024 columns and 32 of a whole step, and
    the chains are added pairwise: within the contract for any number of columns.
    """
    size = min(STEP, 1 << (columns - 1).bit_length())
    return {"SIZE": size, "num_warps": max(1, min(8, size // 128))}
