"""The cases logprob and head_logprob are tested and measured on, and the bounds of their errors."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from avops.kernels.logprob import LogitRule

if TYPE_CHECKING:
    import torch

U = 2.0**-24
"""Half an ulp of 1 in f32."""

# The native kernel's block and lanes.
COLUMNS, LANES = 512, 64

RULES = {
    "plain": LogitRule(),
    "scaled": LogitRule(multiply=0.0625),
    "divided": LogitRule(divide=7.0),
    "capped": LogitRule(softcap=30.0),
    "all": LogitRule(multiply=3.0, divide=7.0, softcap=5.0),
}

# normal: sd 3. flat: all equal. rising: a new maximum all the way. wide: to ±1e4. masked: half −∞.
FILLS = ("normal", "flat", "rising", "wide", "masked")


@dataclass(frozen=True)
class Case:
    """Rows of logits, how they are filled, and the rule."""

    rows: int
    vocabulary: int
    fill: str = "normal"
    rule: str = "plain"

    def __str__(self) -> str:
        return f"{self.rows}x{self.vocabulary}-{self.fill}-{self.rule}"

    def inputs(self, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits and targets; each target is a column that is not masked."""
        import torch

        rng = np.random.default_rng(seed)
        logits = rng.normal(0, 3, (self.rows, self.vocabulary))
        targets = rng.integers(0, self.vocabulary, self.rows)
        if self.fill == "flat":
            logits[:] = 1.5
        elif self.fill == "rising":
            logits = np.sort(logits, axis=1)
        elif self.fill == "wide":
            logits *= 1e4 / 3 / 4
        elif self.fill == "masked":
            logits[rng.random(logits.shape) < 0.5] = -np.inf
            logits[np.arange(self.rows), targets] = 0.25
        return torch.from_numpy(logits.astype(np.float32)), torch.from_numpy(targets)


def cases() -> Iterator[Case]:
    """Widths around lanes and blocks, every fill and rule."""
    widths = (1, 2, LANES - 1, LANES, LANES + 1, COLUMNS - 1, COLUMNS, COLUMNS + 1, 1999, 8191)
    for vocabulary in widths:
        yield Case(5, vocabulary)
    for fill in FILLS:
        for rule in RULES:
            yield Case(7, 2600, fill, rule)


def bound(found: np.ndarray, vocabulary: int, roundings: float, *, logits: float = 0) -> np.ndarray:
    """How far log-probs may be from exact ones: half an ulp, roundings of the sum, and of logits.

    logits: the largest error of any logit, which counts twice: of the target, of the sum.
    """
    half = np.spacing(np.abs(found)).astype(np.float64) / 2
    exact = U * (roundings + math.log(vocabulary)) * 1.001  # 1.001: products of (1 + u)
    return np.asarray(half + exact + 2 * logits)


def rule_error(rule: LogitRule, largest: float) -> float:
    """How far f32 logits may be from the exact ones of f32 outputs of at most ``largest``.

    One rounding for each of three steps (the cap's derivative is at most 1), then tanh within
    4 ulp (8 roundings) and its product with the cap.
    """
    scaled = largest * abs(rule.multiply / rule.divide)
    cap = rule.softcap or 0.0
    steps = (rule.multiply != 1) + (rule.divide != 1)
    return U * 1.001 * ((steps + bool(cap)) * scaled + 9 * cap)


def logit_error(size: np.ndarray, dim: int, rule: LogitRule) -> float:
    """How far a head's f32 logits may be from exact ones. size: Σ |h·w| + |bias| of each.

    Parts of 256 products in one chain, parts one by one, the bias: native code. One chain: Triton,
    the reference not at all.
    """
    largest = float(size.max())
    outputs = U * 1.001 * (min(dim, 256) + dim / 256 + 2) * largest
    return outputs * abs(rule.multiply / rule.divide) + rule_error(rule, largest)
