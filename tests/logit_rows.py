"""Exact log-probs in f64, and where tests of logprob and head_logprob compute."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

from avops.kernels import LogitRule, extension

INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"

# (backend, device). Triton takes CPU tensors in its interpreter only: test_logprob_triton.py.
PLACES = [("triton", "cpu")] if INTERPRETING else [
    pytest.param(("native", "cpu"), marks=pytest.mark.skipif(
        extension.NATIVE is None, reason=extension.REASON)),
    pytest.param(("triton", "cuda"), marks=pytest.mark.gpu),
]  # fmt: skip


def exact(logits: np.ndarray, targets: np.ndarray, rule: LogitRule) -> np.ndarray:
    """Log-probs of f64 outputs of a head, nothing rounded on the way but to f64."""
    x = logits.astype(np.float64) * rule.multiply / rule.divide
    if rule.softcap is not None:
        x = np.tanh(x / rule.softcap) * rule.softcap
    highest = x.max(axis=1)
    with np.errstate(invalid="ignore"):
        total = np.exp(x - highest[:, None]).sum(axis=1)
    return x[np.arange(len(x)), targets] - highest - np.log(total)


def bits(tensor: torch.Tensor) -> np.ndarray:
    return tensor.cpu().numpy().view(np.uint32)
