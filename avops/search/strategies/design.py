"""Where a search begins, and which points of a large space its model is asked about."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from avops.search.space import Point, Space

_TRIES = 16


def unit(space: Space, points: NDArray[np.int32]) -> NDArray[np.float64]:
    """``points`` with every axis mapped to [-1, 1]."""
    low = np.array([axis.low for axis in space.axes], dtype=np.float64)
    high = np.array([axis.high for axis in space.axes], dtype=np.float64)
    half = np.maximum(high - low, 1) / 2
    return np.asarray((points - (low + high) / 2) / half, dtype=np.float64)


def design_size(axes: int) -> int:
    """Points before the model is asked: 8 for one axis, 20 for three."""
    return 6 * axes + 2


def first_points(space: Space, seed: int) -> tuple[Point, ...]:
    """The origin, ±1 on each axis (clipped into the space), and points that fill the space."""
    axes = len(space.axes)
    count = min(design_size(axes), len(space))
    moves = np.concatenate([np.zeros((1, axes)), np.eye(axes), -np.eye(axes)])
    found = dict.fromkeys(space.nearest(move.tolist()) for move in moves)
    fixed = unit(space, np.array(list(found), dtype=np.int32))
    shift = _shift(fixed, max(1, count - len(found)), seed)
    found |= dict.fromkeys(_filling(space, shift, set(found), count - len(found)))
    return tuple(found)


def filling(space: Space, seed: int, taken: set[Point], count: int) -> tuple[Point, ...]:
    """At most ``count`` further points that fill the space, none of ``taken``."""
    shift = np.random.default_rng([seed, 1]).random(len(space.axes))
    return _filling(space, shift, taken, count)


def _filling(
    space: Space, shift: NDArray[np.float64], taken: set[Point], count: int
) -> tuple[Point, ...]:
    """Of a Kronecker sequence (Roberts' generalised golden ratio), warped by −cos πu.

    That is the arcsine law, as Chebyshev's nodes have: more weight on the faces, where a polynomial
    is least certain.
    """
    steps = np.array([float(axis.step) for axis in space.axes])
    low = np.array([axis.low for axis in space.axes]) * steps
    high = np.array([axis.high for axis in space.axes]) * steps
    found: dict[Point, None] = {}
    # On a coarse grid, and outside the bound of Σ|λ|, places fall together: take more until enough.
    many = 8 * (count + len(taken)) + 64
    for place in -np.cos(np.pi * kronecker(many, len(space.axes), shift)):
        if len(found) >= count:
            break
        point = space.nearest(((place + 1) / 2 * (high - low) + low).tolist())
        if point not in taken:
            found[point] = None
    return tuple(found)


def _shift(fixed: NDArray[np.float64], count: int, seed: int) -> NDArray[np.float64]:
    """Of a few random shifts, the one whose points lie farthest apart."""
    axes = fixed.shape[1]
    best, widest = np.zeros(axes), -1.0
    for shift in np.random.default_rng([seed, 0]).random((_TRIES, axes)):
        some = np.concatenate([fixed, -np.cos(np.pi * kronecker(count, axes, shift))])
        apart = ((some[:, None] - some[None]) ** 2).sum(-1) + 1e9 * np.eye(len(some))
        if apart.min() > widest:
            best, widest = shift, float(apart.min())
    return best


def kronecker(count: int, axes: int, shift: NDArray[np.float64]) -> NDArray[np.float64]:
    """``count`` points of low discrepancy in [0, 1)^axes."""
    ratio = 1.0
    for _ in range(64):  # the root of x^(axes + 1) = x + 1
        ratio = (1 + ratio) ** (1 / (axes + 1))
    alpha = ratio ** -np.arange(1.0, axes + 1)
    return np.asarray((shift + np.arange(1, count + 1)[:, None] * alpha) % 1.0)


def sample_rows(space: Space, count: int, seed: tuple[int, ...]) -> NDArray[np.intp]:
    """Rows of all points, or of about ``count`` spread over a space that has more."""
    if len(space) <= count:
        return np.arange(len(space))
    # A stratified draw over the rows, whose order is the space's own.
    rng = np.random.default_rng(list(seed))
    edges = np.linspace(0, len(space), count + 1)
    return np.unique((edges[:-1] + rng.random(count) * np.diff(edges)).astype(np.intp))


def around(space: Space, rows: NDArray[np.intp]) -> NDArray[np.intp]:
    """``rows`` and those of their neighbours: one step on one axis, or on two at once."""
    axes = len(space.axes)
    one = np.concatenate([np.eye(axes), -np.eye(axes)]).astype(np.int64)
    moves = np.unique(np.concatenate([one, (one[:, None] + one[None]).reshape(-1, axes)]), axis=0)
    near = (space.grid[rows].astype(np.int64)[:, None] + moves).reshape(-1, axes)
    found = [space.row(point) for point in map(tuple, near.tolist()) if point in space]
    return np.unique(np.concatenate([rows, np.array(found, dtype=np.intp)]))
