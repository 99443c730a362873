"""The self-check's memory: no weight is widened whole, and what it took goes back."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from avops.score import Scorer, TokenPlan, check, weight_norms

WIDE = {"cpu": 64, "cuda": 64}


@pytest.fixture
def widened(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of what a norm is made of at once; 64 numbers may be."""
    shapes: list[tuple[int, ...]] = []
    whole = weight_norms._whole_norm

    def watched(x: torch.Tensor, dim: int) -> torch.Tensor:
        shapes.append(tuple(x.shape))
        return whole(x, dim)

    monkeypatch.setattr(weight_norms, "WIDENED", WIDE)
    monkeypatch.setattr(weight_norms, "_whole_norm", watched)
    return shapes


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_check_widens_no_weight_and_gives_its_memory_back(
    make_model: Any,
    plan: TokenPlan,
    widened: list[tuple[int, ...]],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    trims: list[int] = []
    monkeypatch.setattr(check, "trim_heap", lambda: trims.append(len(widened)))
    scorer = Scorer(make_model(name).to(torch.bfloat16).eval(), plan)
    scorer.run()
    verdict = scorer.check
    assert verdict is not None
    assert verdict.reason is None
    weights = [shape for shape in widened if len(shape) == 2]
    # Rows of the head are 32 wide: two of them at a time.
    assert weights
    assert (2, 32) in weights
    assert max(rows * columns for rows, columns in weights) <= 128  # one row or column at least
    assert trims == [len(widened)]  # once, when all is done
