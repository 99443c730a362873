"""Norms of weights: right, and made of pieces where they would have to be widened."""

from __future__ import annotations

import pytest
import torch

from avops.score import weight_norms
from avops.score.weight_norms import Norms, norm_of, norm_once

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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(7, 11), (64, 3), (3, 64), (2, 65), (65, 2), (1, 1), (0, 5)])
@pytest.mark.parametrize("dim", [-1, -2])
def test_norms_of_half_precision_are_made_in_pieces(
    widened: list[tuple[int, ...]], dtype: torch.dtype, shape: tuple[int, int], dim: int
) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    got, want = norm_of(x, dim), x.double().square().sum(dim, keepdim=True).sqrt()
    assert got.dtype == torch.float32
    assert got.shape == want.shape
    # 65 squares and their sum, each rounded to f32, then a root: 67 roundings at most.
    assert ((got - want).abs() <= 67 * 2.0**-24 * want).all()
    along = shape[dim]
    assert all(rows * columns <= max(64, along) for rows, columns in widened)
    sizes = [part[1 + dim] for part in widened]
    assert sum(sizes) == shape[1 + dim]


def test_norms_of_f32_and_of_more_dimensions_are_made_at_once(
    widened: list[tuple[int, ...]],
) -> None:
    norm_of(torch.ones(50, 4), -1)
    norm_of(torch.ones(3, 5, 40, dtype=torch.bfloat16), -1)
    assert widened == [(50, 4), (3, 5, 40)]


@pytest.mark.parametrize("parameter", [True, False])
def test_only_a_parameters_norm_is_kept(parameter: bool) -> None:
    """Other tensors come and go, and another one may have the same id."""
    norms: Norms = {}
    weight = torch.full((3, 4), 2.0)
    if parameter:
        weight = torch.nn.Parameter(weight)
    for _ in range(2):
        assert norm_once(weight, -1, norms).tolist() == [[4.0]] * 3
    assert list(norms) == [id(weight)] * parameter
