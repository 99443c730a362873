"""How a model is aligned: every number of a training run, checked in one place."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from avops.errors import UserError

LOSSES = ("ipo", "sigmoid", "hinge")
SCHEDULES = ("linear", "cosine", "constant", "constant_with_warmup")


@dataclass(frozen=True)
class Lora:
    """A low-rank adapter in place of all weights.

    alpha: None for twice the rank. modules: names of the adapted modules; none: all linear ones but
    the head.
    """

    rank: int
    alpha: int | None = None
    dropout: float = 0.0
    modules: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raises UserError for a number out of its range."""
        _check("LoRA rank", self.rank, self.rank >= 1, "1 or more")
        _check("LoRA alpha", self.alpha, self.alpha is None or self.alpha >= 1, "1 or more")
        _check("LoRA dropout", self.dropout, 0 <= self.dropout < 1, "0 or more, and below 1")

    @property
    def scale(self) -> int:
        """alpha, chosen."""
        return 2 * self.rank if self.alpha is None else self.alpha


@dataclass(frozen=True)
class Settings:
    """A training run.

    β 0.1, one epoch and batches of 4 pairs are those of arXiv 2410.19206; the learning rate and
    its linear decay are TRL's for this trainer. max_steps: optimiser steps, None for all of the
    epochs. batch: pairs in one forward pass of one process; accumulate: passes in one step.
    warmup: steps. weights: dtype of the weights that are trained (f32 or bf16); compute: that of
    the arithmetic, ``auto`` for bf16 on a GPU and f32 elsewhere. checkpointing: recompute
    activations rather than keep them. precompute: run the reference once before training rather
    than keep it. save_steps: training state every so many steps, to go on from.
    """

    beta: float = 0.1
    loss: str = "ipo"
    epochs: float = 1.0
    max_steps: int | None = None
    batch: int = 4
    accumulate: int = 1
    lr: float = 1e-6
    schedule: str = "linear"
    warmup: int = 0
    weight_decay: float = 0.0
    clip: float = 1.0
    optimizer: str = "adamw_torch"
    seed: int = 0
    lora: Lora | None = None
    weights: str = "f32"
    compute: str = "auto"
    checkpointing: bool = False
    precompute: bool = False
    save_steps: int | None = None

    def __post_init__(self) -> None:
        """Raises UserError for a number out of its range."""
        for name in ("beta", "epochs", "lr", "clip"):
            value = getattr(self, name)
            _check(name, value, 0 < value < math.inf, "a number above 0")
        for name in ("batch", "accumulate"):
            _check(name, getattr(self, name), getattr(self, name) >= 1, "1 or more")
        for name in ("max_steps", "save_steps"):
            value = getattr(self, name)
            _check(name, value, value is None or value >= 1, "1 or more")
        _check("warmup", self.warmup, self.warmup >= 0, "0 or more steps")
        _check("weight_decay", self.weight_decay, 0 <= self.weight_decay < math.inf, "0 or more")
        _check("seed", self.seed, 0 <= self.seed < 1 << 32, "a whole number from 0 to 2³² − 1")
        for name, known in (
            ("loss", LOSSES),
            ("schedule", SCHEDULES),
            ("weights", ("f32", "bf16")),
            ("compute", ("auto", "f32", "bf16")),
        ):
            _check(name, getattr(self, name), getattr(self, name) in known, " or ".join(known))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-able values."""
        table = asdict(self)
        if self.lora is not None:
            table["lora"] |= {"alpha": self.lora.scale, "modules": list(self.lora.modules)}
        return table


def _check(name: str, value: Any, good: bool, expected: str) -> None:
    if not good:
        raise UserError(f"{name.replace('_', ' ')} is {value}, expected {expected}")
