"""logprob in C++: csrc/logprob.cpp, through avops._native. Releases the GIL."""

from __future__ import annotations

from typing import TYPE_CHECKING

from avops.kernels import extension
from avops.kernels.extension import available

if TYPE_CHECKING:
    import torch

    from avops.kernels.logprob import LogitRule

__all__ = ["DEVICES", "ROUNDINGS", "available", "run"]

DEVICES = ("cpu",)

# Behind a term of a row's sum: 2 for an exponential within 1 ulp, 7 sums of 8 terms.
ROUNDINGS = 9


def run(
    logits: torch.Tensor,
    targets: torch.Tensor,
    rule: LogitRule,
    out: torch.Tensor,
    threads: int,
) -> None:
    """Write out."""
    rows, columns = logits.shape
    extension.NATIVE.logprob(  # type: ignore[union-attr]
        logits.data_ptr(),
        rows,
        columns,
        logits.stride(0),
        targets.data_ptr(),
        rule.numbers(),
        out.data_ptr(),
        threads,
    )
