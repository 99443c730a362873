"""head_logprob: log P of one target for each row of hidden states, logits never in memory.

Made once for a head, called for every batch of rows, while the head's weights change in place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from avops.kernels import registry
from avops.kernels.logprob import LogitRule
from avops.kernels.logprob.checks import (
    check_bias,
    check_matrix,
    check_out,
    check_targets,
    check_threads_for,
)

if TYPE_CHECKING:
    import torch

__all__ = ["LogProb"]


class LogProb:
    """log P(target) under the logits hidden @ weight.T + bias, shaped by ``rule``.

    Shapes and dtypes
        weight: [vocabulary, dim], contiguous; f32, f16 or bf16. bias: [vocabulary] of the same
        dtype, or None. hidden: [rows, dim], contiguous, f32, f16 or bf16. targets: int64 [rows].
        One device. Tensors are read where they lie at each call: weights may change in place, and
        nothing that comes from them is kept.
    Numerics
        Logits are f32 from exact inputs, never rounded to another type. Products of bf16 and f16
        are exact in f32. Each logit is a sum over k in parts of 256, in order, each part one chain
        in f32 with fused or exact products, parts added in order (triton.py: one chain); where the
        processor multiplies pairs of bf16, what is below 2⁻¹²⁶ counts as 0. So with u = 2⁻²⁴ and
        n = min(dim, 256) + dim / 256 + 2,
            |logit − exact| ≤ n·u·(Σ |h·w| + |bias|)
        and a log-prob differs from the exact one by at most that of its target, plus the largest
        of the row, plus the bound of ``logprob`` (with 13 for 9 in native code).
        Never above 0. A row's bits depend on that row and the head only: not on how many rows a
        call has, nor on threads. They may differ between processors.
        NaN and infinities as in ``logprob``.
    Errors
        TypeError, ValueError: what does not fit; on the CPU also a target that is no row of weight.
        BackendError: a forced backend that cannot serve, or does not reach the device.
    Memory and bytes moved
        One workspace, allocated by the first call, of fixed size, so that an object is one
        thread's at a time: native 5 to 6 MiB a thread, Triton 64 KiB for each 2,048 of the
        vocabulary. Weights are read once for each pass of about 10⁶ / dim rows and thread (native),
        or from the L2 cache (Triton).
    Source
        Online normaliser (Milakov and Gimelshein, arXiv 1805.02867), fused with the product as in
        cut cross-entropy (Wijmans et al., arXiv 2411.09009).
    """

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None = None,
        *,
        rule: LogitRule | None = None,
        threads: int | None = None,
        backend: str | registry.Implementation | None = None,
    ) -> None:
        check_matrix(weight, "weight")
        check_bias(bias, weight)
        self.weight = weight
        self.bias = bias
        self.rule = rule or LogitRule()
        implementation = registry.resolve("head_logprob", backend, device=weight.device.type)
        self.backend = implementation.backend
        self._state = implementation.run(self.rule, check_threads_for(threads))

    def __call__(
        self, hidden: torch.Tensor, targets: torch.Tensor, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The log-probs, f32 [rows], with the weights as they are now."""
        vocabulary, dim = self.weight.shape
        check_matrix(self.weight, "weight")
        check_matrix(hidden, "hidden", dim)
        if hidden.device != self.weight.device:
            raise ValueError(f"hidden is on {hidden.device}, expected {self.weight.device}")
        rows = hidden.shape[0]
        check_targets(targets, rows, vocabulary, hidden.device)
        result = check_out(out, rows, hidden.device, (hidden, targets, self.weight))
        if rows:
            self._state.run(hidden, self.weight, self.bias, targets, result)
        return result
