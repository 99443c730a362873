"""truncate: the nearest matrix of a given rank, as two factors.

The wanted singular vectors are those of the largest eigenvalues of G = Δ Δᵀ, Δ taken with its
smaller side first. Small matrices: all eigenvectors of G. Others: a block of vectors to which
Chebyshev polynomials of G are applied that are small on all but the largest eigenvalues (Zhou and
Saad, 2006), until the product can come no nearer than the rounding of its factors; then once more
in float64. That reads Δ some ten times where its singular values decay, some fifty times where it
is noise, instead of the cube of its side.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

# Vectors beside the wanted ones: the more, the faster the wanted ones stand out.
_BESIDE = 16
# A matrix with fewer rows than this many blocks of vectors is decomposed whole.
_BLOCKS = 4
# The rounding of a factor to float32, relative.
_ROUNDING = 2.0**-24
# The most by which a polynomial may lift the first vector above the last wanted one. Before, each
# has 2^-24 of the first one's direction; afterwards that is 2^10 of it, which leaves it 14 bits.
_LIFT = 1e10
_MAX_DEGREE = 24
_MAX_CYCLES = 100
# Elements that are widened at a time.
_SLICE = 1 << 18


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

    Its distance to ``delta`` is the least possible one, but for the rounding of the factors to
    f32, 2^-24 of each. Both factors carry the square roots of the singular values; of each pair
    of singular vectors the left one's largest entry is positive. Beyond the smaller side factors
    are 0.
    Memory: ``memory``, beside ``delta``.
    """
    rows, columns = delta.shape
    tall = rows > columns
    wide = delta.T if tall else delta
    squares = sum(float(np.einsum("ij,ij->", part, part)) for _, part in _slices(wide))
    top: np.ndarray | None = np.zeros((len(wide), 0)) if squares == 0 else None
    if top is None and not _is_small(delta.shape, rank):
        top = _filtered(wide, rank, squares)
    if top is None:
        top = _decomposed(wide, rank)
    # What Δ has in the span of ``top`` is the best there is, however exact ``top`` is.
    other = _times_transposed(wide, top)
    turn = np.linalg.svd(np.linalg.qr(other)[1])[2].T
    top, other = top @ turn, other @ turn
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
    return Truncated(found_left, found_right, squares, min(float(sizes @ sizes), squares))


def memory(shape: tuple[int, int], rank: int) -> int:
    """Bytes that ``truncate`` takes beside a matrix of ``shape``, about."""
    if _is_small(shape, rank):
        return 8 * shape[0] * shape[1] + 16 * min(shape) ** 2
    return 24 * sum(shape) * (rank + _BESIDE) + 16 * _SLICE


def _is_small(shape: tuple[int, ...], rank: int) -> bool:
    return min(shape) <= _BLOCKS * (rank + _BESIDE)


def _decomposed(wide: np.ndarray, rank: int) -> np.ndarray:
    """The first ``rank`` eigenvectors of G, f64 [rows, at most rank], from all of them."""
    exact = wide.astype(np.float64)
    return np.linalg.eigh(exact @ exact.T)[1][:, ::-1][:, :rank]


def _filtered(wide: np.ndarray, rank: int, squares: float) -> np.ndarray | None:
    """Orthonormal f64 [rows, rank] that span most of G; None if they are not found soon."""
    # Entries of about 1, so that squares of theirs neither overflow nor vanish in float32.
    largest = max(float(wide.max(initial=0)), -float(wide.min(initial=0)))
    scale = 2.0 ** float(np.clip(np.frexp(largest)[1], -120, 120))
    down = np.float32(1 / scale)
    # In units of the scaled matrix.
    total = squares / scale**2
    start = np.random.default_rng(0).standard_normal((len(wide), rank + _BESIDE))
    vectors = _orthonormal(start)
    degree = 1
    for cycle in range(_MAX_CYCLES):
        images = wide.T @ (vectors * down)
        # In float64: there the squares of small singular values last beside those of large ones.
        exact = images.astype(np.float64)
        values, turn = np.linalg.eigh(exact.T @ exact)
        vectors, images = vectors @ turn.astype(np.float32), images @ turn.astype(np.float32)
        powers = wide @ (images * down)
        if cycle > 1:
            kept = float(values[-rank:].sum())
            if _missed(vectors, powers, values, rank) <= _allowed(total, kept):
                precise = _times(wide, images[:, -rank:].astype(np.float64))
                return np.linalg.qr(precise)[0]
            degree = max(degree, _degree(values, rank))
        vectors = _orthonormal(_polynomial(wide, down, vectors, powers, values, degree))
    return None


def _missed(vectors: np.ndarray, powers: np.ndarray, values: np.ndarray, rank: int) -> float:
    """The squares that the wanted vectors would gain from what they lack, to first order.

    powers: G of ``vectors``, whose Rayleigh quotients are ``values``. What is left of them beyond
    all vectors tells it, but for float32's rounding.
    """
    wanted = values[-rank:]
    left = powers[:, -rank:] - vectors[:, -rank:] * wanted.astype(np.float32)
    left -= vectors @ (vectors.T @ left)
    squares = np.einsum("ij,ij->j", left, left, dtype=np.float64)
    squares -= (8 * _ROUNDING) ** 2 * values[-1] * np.maximum(wanted, 0)
    gaps = np.maximum(wanted - values[0], values[-1] * 1e-12)
    return float((np.maximum(squares, 0) / gaps).sum())


def _allowed(total: float, kept: float) -> float:
    """The part of the squares by which the product may miss the nearest one.

    The distance d of the nearest then grows by no more than e, the rounding of a factor:
    (d + e)^2 - d^2.
    """
    distance, error = np.sqrt(max(total - kept, 0.0)), _ROUNDING * np.sqrt(total)
    return float(error**2 + 2 * error * distance)


def _degree(values: np.ndarray, rank: int) -> int:
    """The highest degree that lifts the first vector at most _LIFT above the last wanted one."""
    half = _half(values)
    first, last = (np.arccosh(max(float(value) / half - 1, 1.0)) for value in values[[-1, -rank]])
    return int(np.clip(np.log(_LIFT) / max(first - last, 1e-9), 1, _MAX_DEGREE))


def _half(values: np.ndarray) -> float:
    """The middle of the eigenvalues that are to be made small: 0 to the least of the block's."""
    return max(float(values[0]), float(values[-1]) * 1e-12, 1e-300) / 2


def _polynomial(
    wide: np.ndarray,
    down: np.float32,
    vectors: np.ndarray,
    powers: np.ndarray,
    values: np.ndarray,
    degree: int,
) -> np.ndarray:
    """T_degree(G / half - 1) of ``vectors``, whose G are ``powers``; it may come out scaled.

    |T| ≤ 1 on the eigenvalues up to 2 half, and grows as fast as a polynomial can beyond.
    """
    half = _half(values)
    before: np.ndarray = vectors
    now: np.ndarray = powers / half - vectors
    for _ in range(1, degree):
        size = np.abs(now).max()
        before, now = before / size, now / size
        image = wide.T @ (now * down)
        before, now = now, (wide @ (image * down)) * (2 / half) - 2 * now - before
    return now


def _orthonormal(vectors: np.ndarray) -> np.ndarray:
    """Orthonormal f32 columns that span those of ``vectors``."""
    exact = vectors.astype(np.float64)
    sizes = np.linalg.norm(exact, axis=0)
    found: np.ndarray = np.linalg.qr(exact / np.where(sizes > 0, sizes, 1))[0]
    return found.astype(np.float32)


def _slices(wide: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Rows of ``wide`` in f64, some at a time, and which they are; columns if those are stored."""
    transposed = not wide.flags.c_contiguous
    stored = wide.T if transposed else wide
    step = max(1, _SLICE // max(stored.shape[1], 1))
    for first in range(0, len(stored), step):
        yield slice(first, first + step), stored[first : first + step].astype(np.float64)


def _times(wide: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Δ x in f64."""
    if wide.flags.c_contiguous:
        return np.concatenate([part @ x for _, part in _slices(wide)])
    found = np.zeros((len(wide), x.shape[1]))
    for where, part in _slices(wide):
        found += part.T @ x[where]
    return found


def _times_transposed(wide: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Δᵀ x in f64."""
    return _times(wide.T, x)
