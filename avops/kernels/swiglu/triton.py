"""swiglu in Triton: triton_kernels.py.

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

# Elements of a program: 16 a thread.
SIZE = 2048


def __getattr__(name: str) -> Any:
    """DEVICES: what the kernels compute on; asked for late, since the answer needs Triton."""
    if name == "DEVICES":
        return many.DEVICES
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def run(gate: torch.Tensor, up: torch.Tensor, threads: int) -> None:  # noqa: ARG001 - for CPUs
    """Write gate, on the current stream."""
    from avops.kernels.swiglu import triton_kernels

    with computing(gate) as interpreted:
        triton_kernels.gated[(-(-gate.numel() // SIZE),)](
            patterns(gate),
            patterns(up),
            gate.numel(),
            SIZE=SIZE,
            EXACT=interpreted,
            num_warps=4,
            enable_fp_fusion=False,
        )
