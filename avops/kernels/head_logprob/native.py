"""head_logprob in C++: csrc/head.cpp, through avops._native. Releases the GIL."""

from __future__ import annotations

from typing import TYPE_CHECKING

from avops.kernels import extension
from avops.kernels.extension import available
from avops.kernels.logprob import LogitRule
from avops.kernels.many.checks import dtype_of

if TYPE_CHECKING:
    import torch

__all__ = ["DEVICES", "PATHS", "ROUNDINGS", "available", "run"]

DEVICES = ("cpu",)

# The ways to multiply, worst first: csrc/avops.h's avops_path.
PATHS = ("plain", "AVX2", "AVX-512", "AVX-512 BF16")

# Behind a term of a row's sum: 2 for an exponential within 1 ulp, 11 sums of 12 terms.
ROUNDINGS = 13


def run(rule: LogitRule, threads: int) -> Head:
    """A head, ready to run."""
    return Head(rule, threads)


class Head:
    """A workspace for one head's width. path: the best of PATHS to take, if the CPU has it."""

    def __init__(self, rule: LogitRule, threads: int, path: int = len(PATHS) - 1) -> None:
        self._rule = rule.numbers()
        self._threads = threads
        self._path = path
        self._scratch: torch.Tensor | None = None

    def run(
        self,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        out: torch.Tensor,
    ) -> None:
        """Write out."""
        vocabulary, dim = weight.shape
        extension.NATIVE.head_logprob(  # type: ignore[union-attr]
            hidden.data_ptr(),
            _code(hidden),
            hidden.shape[0],
            weight.data_ptr(),
            _code(weight),
            0 if bias is None else bias.data_ptr(),
            0 if bias is None else _code(bias),
            vocabulary,
            dim,
            targets.data_ptr(),
            self._rule,
            out.data_ptr(),
            self._path,
            self._room(dim),
            self._threads,
        )

    def _room(self, dim: int) -> int:
        """The address of the workspace, aligned to 64 bytes."""
        import torch

        native = extension.NATIVE
        size = native.head_scratch(dim) * self._threads + 64  # type: ignore[union-attr]
        if self._scratch is None or self._scratch.numel() < size:
            self._scratch = torch.empty(size, dtype=torch.uint8)
        return (self._scratch.data_ptr() + 63) // 64 * 64


def _code(tensor: torch.Tensor) -> int:
    dtype = dtype_of(tensor)
    assert dtype is not None
    return dtype.code
