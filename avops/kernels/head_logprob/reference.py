"""head_logprob in numpy and f64: the contract, spelled out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from avops.kernels.logprob import LogitRule
from avops.kernels.logprob.reference import available, log_prob, shaped

if TYPE_CHECKING:
    import torch

__all__ = ["available", "run"]


def run(rule: LogitRule, threads: int) -> Head:  # noqa: ARG001 - numpy takes its own threads
    """A head, ready to run."""
    return Head(rule)


class Head:
    """One row of logits at a time."""

    def __init__(self, rule: LogitRule) -> None:
        self._rule = rule

    def run(
        self,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        out: torch.Tensor,
    ) -> None:
        """Write out."""
        import torch

        wide = weight.detach().cpu().double().numpy()
        shift = 0.0 if bias is None else bias.detach().cpu().double().numpy()
        for row, target in enumerate(targets.tolist()):
            with np.errstate(all="ignore"):
                logits = wide @ hidden[row].detach().cpu().double().numpy() + shift
                value = log_prob(shaped(logits.astype(np.float32), self._rule), target)
            out[row] = torch.tensor(value, dtype=torch.float32)
