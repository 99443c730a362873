"""Euclidean norms along one dimension, in f32, without widening a whole weight for them."""

from __future__ import annotations

from avops.errors import MissingExtraError

try:
    import torch
except ModuleNotFoundError as error:
    raise MissingExtraError(error.name or "torch", "score", "scoring") from error

WIDENED = {"cpu": 1 << 18, "cuda": 1 << 24}
"""Numbers in half precision that are widened at a time: 1 MiB in f32, 64 MiB."""

Norms = dict[int, torch.Tensor]
"""The norms of a model's weights, by their id; good while the weights stay as they are."""


def norm_of(x: torch.Tensor, dim: int) -> torch.Tensor:
    """The norm of a tensor along ``dim``, -1 or -2, which is kept with a size of 1; f32.

    On the CPU torch widens all of ``x`` first. Of a weight that is many MiB, and where a norm was
    put behind it, its room is too small for the next one: they would add up.
    """
    if x.ndim != 2 or x.dtype == torch.float32:
        return _whole_norm(x, dim)
    axis = 1 + dim  # along which there is a norm for each: rows for -1, columns for -2
    shape = list(x.shape)
    shape[dim] = 1
    norm = torch.empty(shape, device=x.device)
    widened = WIDENED.get(x.device.type, WIDENED["cuda"])
    step = max(1, widened // max(1, x.shape[dim]))
    for part, out in zip(torch.split(x, step, axis), torch.split(norm, step, axis), strict=True):
        out.copy_(_whole_norm(part, dim))
    return norm


def norm_once(weight: torch.Tensor, dim: int, norms: Norms) -> torch.Tensor:
    """The same, found once for a parameter: ``norms`` keeps it."""
    if not isinstance(weight, torch.nn.Parameter):
        return norm_of(weight, dim)
    if id(weight) not in norms:
        norms[id(weight)] = norm_of(weight, dim)
    return norms[id(weight)]


def _whole_norm(x: torch.Tensor, dim: int) -> torch.Tensor:
    norm: torch.Tensor = torch.linalg.vector_norm(x, dim=dim, keepdim=True, dtype=torch.float32)
    return norm
