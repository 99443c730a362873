"""Numbers of a training run that cannot be."""

from __future__ import annotations

import math
from typing import Any

import pytest

from avops.align import Lora, Settings
from avops.errors import UserError


def test_the_papers_numbers_are_the_defaults() -> None:
    settings = Settings()
    assert (settings.beta, settings.loss, settings.epochs, settings.batch) == (0.1, "ipo", 1, 4)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("beta", 0.0, "beta is 0.0, expected a number above 0"),
        ("beta", math.nan, "beta is nan"),
        ("lr", math.inf, "lr is inf"),
        ("max_steps", 0, "max steps is 0, expected 1 or more"),
        ("batch", 0, "batch is 0"),
        ("loss", "kto", "loss is kto, expected ipo or sigmoid or hinge"),
        ("weights", "f16", "weights is f16, expected f32 or bf16"),
        ("seed", -1, "seed is -1"),
        ("warmup", -1, "warmup is -1"),
    ],
)
def test_numbers_out_of_range(field: str, value: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        Settings(**{field: value})


def test_adapters() -> None:
    assert Lora(8).scale == 16
    assert Lora(8, alpha=8).scale == 8
    with pytest.raises(UserError, match="LoRA rank is 0"):
        Lora(0)
    with pytest.raises(UserError, match="LoRA dropout is 1"):
        Lora(8, dropout=1.0)
    assert Settings(lora=Lora(8)).to_dict()["lora"] == {
        "rank": 8, "alpha": 16, "dropout": 0.0, "modules": [],
    }  # fmt: skip
