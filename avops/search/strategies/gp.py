"""A Gaussian process over all scores at once: one kernel, one factorisation, any number of outputs.

Prior covariance of an output, up to its own scale σ²:

    k(x, x') = m(r) + a + b·Σ x_d x'_d + c·Σ_{d≤e} φ_de(x) φ_de(x')     r² = Σ ((x_d − x'_d) / ℓ_d)²
    m(r) = (1 + √5 r + 5/3 r²) exp(−√5 r)                                (Matérn-5/2)

the last three terms being a constant, a linear and a quadratic trend with wide Gaussian priors.
With K = k(X, X) + η I, everything that the outputs share is in K⁻¹: the weights w(x) = K⁻¹ k(X, x)
give the mean w(x)ᵀ Y of every output, v(x) = k(x, x) + η − w(x)ᵀ k(X, x) the variance of a
measurement, up to σ². Leaving point i out (Rasmussen & Williams, 5.12) gives the error
(K⁻¹ y)_i / (K⁻¹)_ii with variance σ² / (K⁻¹)_ii.

The ℓ_d and η are those with the largest marginal likelihood over all outputs with a common σ², for
which Y enters only as the n × n matrix of its inner products: a step of the optimiser costs O(n³),
whatever the number of outputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Array = NDArray[np.float64]

# Prior variances of the trend, as multiples of σ²: wide, since λ moves every score by far more than
# the trend leaves unexplained.
CONSTANT, LINEAR, QUADRATIC = 100.0, 100.0, 30.0
# Bounds of ℓ in units of an axis' half range, and of η.
LENGTHS = (0.15, 8.0)
NUGGETS = (1e-6, 1.0)
# Points that the hyper-parameters are fitted to; more change them little and cost n³.
FITTED = 256


@dataclass(frozen=True)
class Kernel:
    """lengths: ℓ per axis. nugget: η."""

    lengths: tuple[float, ...]
    nugget: float

    def between(self, left: Array, right: Array) -> Array:
        """Covariance k without η, [left, right], of points [., axis] in [-1, 1]."""
        scale = 1 / np.asarray(self.lengths)
        a, b = left * scale, right * scale
        square = (a * a).sum(1)[:, None] + (b * b).sum(1) - 2 * (a @ b.T)
        r = np.sqrt(5 * np.maximum(square, 0))
        return np.asarray((1 + r + r * r / 3) * np.exp(-r) + _trend(left) @ _trend(right).T)

    def at(self, points: Array) -> Array:
        """k(x, x) without η, [point]."""
        features = _trend(points)
        return np.asarray(1 + (features * features).sum(1))


def _trend(points: Array) -> Array:
    """Features whose inner products are the trend's covariance."""
    first, second = np.triu_indices(points.shape[1])
    cross = points[:, first] * points[:, second]
    ones = np.full((len(points), 1), CONSTANT**0.5)
    return np.concatenate([ones, LINEAR**0.5 * points, QUADRATIC**0.5 * cross], axis=1)


@dataclass(frozen=True, eq=False)
class Process:
    """A fitted process: ``kernel``, the points it knows [n, axis] and K⁻¹."""

    kernel: Kernel
    points: Array
    inverse: Array

    @classmethod
    def fit(cls, points: Array, outputs: Array) -> Process:
        """Hyper-parameters by marginal likelihood of ``outputs`` [n, output], then K⁻¹."""
        return cls.of(best_kernel(points, outputs), points)

    @classmethod
    def of(cls, kernel: Kernel, points: Array) -> Process:
        """The process of a kernel at known points."""
        return cls(kernel, points, _inverse(_covariance(kernel, points)))

    def weights(self, points: Array) -> tuple[Array, Array]:
        """(w [point, n], v [point]): what the means are made of; the variance of a measurement."""
        cross = self.kernel.between(points, self.points)
        found = cross @ self.inverse
        v = self.kernel.at(points) - np.einsum("pn,pn->p", found, cross)
        return found, np.maximum(v, 0) + self.kernel.nugget

    def covariance(self, points: Array) -> Array:
        """Posterior covariance [point, point] without η, up to σ²."""
        cross = self.kernel.between(points, self.points)
        return np.asarray(self.kernel.between(points, points) - cross @ self.inverse @ cross.T)

    @cached_property
    def spread(self) -> Array:
        """Leave-one-out variance of each known point, up to σ²."""
        return np.asarray(1 / np.diag(self.inverse))

    def left_out(self, outputs: Array) -> Array:
        """Leave-one-out errors, truth − prediction, [n, output]."""
        return np.asarray((self.inverse @ outputs) * self.spread[:, None])


def best_kernel(points: Array, outputs: Array) -> Kernel:
    """The kernel with the largest marginal likelihood, by pattern search on log ℓ and log η."""
    if len(points) > FITTED:
        kept = np.linspace(0, len(points) - 1, FITTED).round().astype(int)
        points, outputs = points[kept], outputs[kept]
    n, axes = points.shape
    centred = outputs - outputs.mean(axis=0)
    size = np.sqrt((centred**2).mean(axis=0))
    scaled = centred[:, size > 0] / size[size > 0]
    gram = scaled @ scaled.T / max(1, scaled.shape[1])

    def loss(place: Array) -> float:
        covariance = _covariance(_kernel(place), points)
        lower = np.linalg.cholesky(covariance)
        half = np.linalg.solve(lower, gram)
        quadratic = float(np.trace(np.linalg.solve(lower, half.T)))
        misfit = n * np.log(max(quadratic, 1e-300))
        return float(misfit + 2 * np.log(np.diag(lower)).sum())

    starts = [
        np.array([np.log(length)] * axes + [np.log(nugget)])
        for length in (0.5, 1.0, 2.0)
        for nugget in (1e-4, 1e-2)
    ]
    return _kernel(_descend(loss, min(starts, key=loss)))


def _descend(loss: Callable[[Array], float], place: Array) -> Array:
    """One coordinate at a time, steps halved whenever no coordinate gains."""
    low = np.log([LENGTHS[0]] * (len(place) - 1) + [NUGGETS[0]])
    high = np.log([LENGTHS[1]] * (len(place) - 1) + [NUGGETS[1]])
    best, steps = loss(place), np.array([0.7] * (len(place) - 1) + [1.5])
    while steps[0] > 0.15:
        gained = False
        for axis in range(len(place)):
            for sign in (1, -1):
                moved = place.copy()
                moved[axis] += sign * steps[axis]
                moved = np.clip(moved, low, high)
                value = loss(moved)
                if value < best - 1e-3:
                    place, best, gained = moved, value, True
                    break
        if not gained:
            steps = steps / 2
    return place


def _kernel(place: Array) -> Kernel:
    return Kernel(tuple(np.exp(place[:-1]).tolist()), float(np.exp(place[-1])))


def _covariance(kernel: Kernel, points: Array) -> Array:
    found = kernel.between(points, points)
    found[np.diag_indices_from(found)] += kernel.nugget
    return found


def _inverse(matrix: Array) -> Array:
    """Of a symmetric positive definite matrix; symmetric to the bit."""
    lower = np.linalg.cholesky(matrix)
    inner = np.linalg.solve(lower, np.eye(len(matrix)))
    return np.asarray(inner.T @ inner)
