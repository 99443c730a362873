"""logprob in numpy and f64: the contract, spelled out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

    from avops.kernels.logprob import LogitRule


def available() -> tuple[bool, str]:
    """Always: numpy is a dependency."""
    return True, "numpy, always there"


def run(
    logits: torch.Tensor,
    targets: torch.Tensor,
    rule: LogitRule,
    out: torch.Tensor,
    threads: int,  # noqa: ARG001 - numpy works in the calling thread
) -> None:
    """Write out."""
    import torch

    picked = targets.cpu().numpy()
    for row in range(logits.shape[0]):
        x = shaped(logits[row].detach().cpu().numpy(), rule)
        out[row] = torch.tensor(log_prob(x, int(picked[row])), dtype=torch.float32)


def shaped(outputs: np.ndarray, rule: LogitRule) -> np.ndarray:
    """A head's f32 outputs as logits: every step rounded to f32, tanh to nearest."""
    with np.errstate(all="ignore"):
        x = outputs * np.float32(rule.multiply) / np.float32(rule.divide)
        if rule.softcap is not None:
            cap = np.float32(rule.softcap)
            x = np.tanh((x / cap).astype(np.float64)).astype(np.float32) * cap
    return x.astype(np.float32)


def log_prob(x: np.ndarray, target: int) -> float:
    """Log P(target) of one row of logits."""
    if not 0 <= target < x.size or not np.isfinite(highest := x.max()):
        return float("nan")
    below = x.astype(np.float64) - float(highest)
    return float(below[target] - np.log(np.exp(below).sum()))
