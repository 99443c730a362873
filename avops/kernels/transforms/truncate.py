"""truncate: the nearest matrix of a given rank, as two factors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Truncated:
    """B@A, the nearest to Δ of its rank. left: B, f32 [rows, rank]; right: A, f32 [rank, columns].

    squares: the sum over Δ's entries. kept: the part of it that the product has.
    """

    left: np.ndarray
    right: np.ndarray
    squares: float
    kept: float


def truncate(delta: np.ndarray, rank: int) -> Truncated:
    """The nearest matrix to ``delta`` (f32 [rows, columns], finite) of rank ``rank``.

    Both factors carry the square roots of the singular values; of each pair of singular vectors
    the left one's largest entry is positive. Beyond the smaller side factors are 0.
    Memory: 8 bytes an element, and two squares of the smaller side.
    """
    wide = delta.astype(np.float64)
    rows, columns = wide.shape
    tall = rows > columns
    _, vectors = np.linalg.eigh(wide.T @ wide if tall else wide @ wide.T)
    top = vectors[:, ::-1][:, :rank]
    # What Δ has in the span of ``top`` is the best there is, however exact the eigenvalues are.
    other = wide @ top if tall else wide.T @ top
    sizes = np.sqrt(np.einsum("ij,ij->j", other, other))
    root = np.sqrt(sizes)
    one, two = top * root, np.divide(other, root, out=np.zeros_like(other), where=root > 0)
    left, right = (two, one) if tall else (one, two)
    largest = np.abs(left).argmax(axis=0) if left.size else np.zeros(0, np.intp)
    sign = np.where(left[largest, np.arange(left.shape[1])] < 0, -1.0, 1.0)
    found_left = np.zeros((rows, rank), np.float32)
    found_right = np.zeros((rank, columns), np.float32)
    found_left[:, : left.shape[1]] = left * sign
    found_right[: right.shape[1]] = (right * sign).T
    squares = float(np.einsum("ij,ij->", wide, wide))
    return Truncated(found_left, found_right, squares, min(float(sizes @ sizes), squares))
