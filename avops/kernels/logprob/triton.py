"""logprob in Triton: triton_kernels.py, one program a row.

Compiled for CUDA devices; with TRITON_INTERPRET=1 interpreted, on CPU tensors, for tests.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from avops.kernels.many import triton as many
from avops.kernels.many.triton import available

if TYPE_CHECKING:
    import torch

    from avops.kernels.logprob import LogitRule

__all__ = ["available", "quiet", "rounding_count", "rule_options", "run"]

# Columns of a step.
SIZE = 4096


def __getattr__(name: str) -> Any:
    """DEVICES: what the kernels compute on; asked for late, since the answer needs Triton."""
    if name == "DEVICES":
        return many.DEVICES
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def rounding_count(steps: int, size: int) -> float:
    """Roundings behind a term of a row's sum: its exponential (33), a tree, a rescaling a step (7).

    An exponential is 2^(x·log₂e) by the device, within 2⁻²² (4); the product and its factor add
    1.3·|x|, |x| being ln V ≤ 22 in the mean. The tree adds 32 neighbours one by one at most, then
    in pairs. A rescaling is an exponential, a product, a sum, and the rounding of its argument.
    """
    return 33 + 32 + float(np.log2(size)) + 7 * steps


def run(
    logits: torch.Tensor,
    targets: torch.Tensor,
    rule: LogitRule,
    out: torch.Tensor,
    threads: int,  # noqa: ARG001 - for CPUs
) -> None:
    """Write out, on the current stream."""
    from avops.kernels.logprob import triton_kernels

    count, vocabulary = logits.shape
    with quiet(logits):
        triton_kernels.rows[(count,)](
            logits,
            targets,
            out,
            vocabulary,
            logits.stride(0),
            *rule.numbers(),
            SIZE=SIZE,
            **rule_options(rule),
            num_warps=8,
            enable_fp_fusion=False,
        )


def rule_options(rule: LogitRule) -> dict[str, bool]:
    """Which steps of the rule a kernel has."""
    return {
        "MULTIPLY": rule.multiply != 1,
        "DIVIDE": rule.divide != 1,
        "SOFTCAP": rule.softcap is not None,
    }


@contextlib.contextmanager
def quiet(tensor: torch.Tensor) -> Iterator[None]:
    """The tensor's device is the current one; the interpreter's numpy is quiet about NaNs."""
    import torch

    if tensor.device.type == "cuda":
        with torch.cuda.device(tensor.device):
            yield
    else:
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # its maximum of nothing but NaN
            yield
