"""From log-probs to combinations: how likely is each wanted combination at each point.

An item's winner is decided by the differences between its levels' log-probs. With mean m and
variance s² v of the difference of levels l and k (v the process's, shared; s² the item's own, from
leave-one-out errors, drawn towards its domain's), l beats k with probability q = Φ(m / s √v), and
wins with p_l ∝ Π_k q_lk. A domain's lead of l over k is Σ_i (p_il − p_ik) on average, with variance

    Σ_i [p_l + p_k − (p_l − p_k)²]  +  4 ρ Σ_{i≠j} h_i h_j        h_i = φ(m / s √v) (p_l + p_k)

Items are not independent: the same λ moves them together. ρ is the mean correlation of two items'
leave-one-out errors, and the second term the first order of the covariance of two signs of
correlated normal variables. Without it, rare combinations are written off. What is left of
miscalibration, κ², is measured on the leads at the known points, each left out in turn.

A level dominates with the product over its rivals of Φ((lead − ½) / κ sd): a level strictly above
all others is above 1/levels. Φ is the logistic function of 1.702 z: within .01 of the normal one,
with heavier tails, as differences whose variance is estimated have. Domains count as independent.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from avops.search.board import Board, Want
    from avops.search.strategies.gp import Process

    F32 = NDArray[np.float32]
    F64 = NDArray[np.float64]

LOGIT = 1.702
_DENSITY = 4 * (2 * np.pi) ** -0.5  # φ(z) ≈ 1.5958 · q (1 − q), exact at z = 0
# Leave-one-out errors an estimate is drawn towards its prior by.
PRIOR_WEIGHT = 10.0
PRIOR_CORRELATION = 0.3
_BLOCK = 1024


@dataclass(frozen=True, eq=False)
class Moments:
    """Wins at each point.

    mean: [point, group, level]. lead: variances of leads, [point, group, pair]. own: variances of
    wins, [point, group, level].
    """

    mean: F64
    lead: F64
    own: F64


class Tally:
    """One set of items: the moments of its groups' wins, from the process's weights."""

    def __init__(
        self, scores: F32, groups: Sequence[NDArray[np.intp]], levels: int, process: Process
    ) -> None:
        """scores: [point, item · level]. groups: the items that are counted together."""
        self.levels, self.groups = levels, len(groups)
        self.pairs = tuple(itertools.combinations(range(levels), 2))
        order = np.concatenate(groups)
        self.sizes = np.array([len(group) for group in groups], dtype=np.float64)
        self._member = np.repeat(np.eye(self.groups, dtype=np.float32), self.sizes.astype(int), 0)
        table = scores.reshape(len(scores), -1, levels)[:, order].astype(np.float64)
        first, second = (np.array(side, dtype=np.intp) for side in zip(*self.pairs, strict=True))
        gaps = np.moveaxis(table[:, :, first] - table[:, :, second], 2, 1)  # [n, pair, item]
        flat = gaps.reshape(len(gaps), -1)
        errors = process.left_out(flat).reshape(gaps.shape)
        standard = errors / np.sqrt(process.spread)[:, None, None]
        self.scale = self._scales(standard)
        self.correlation = self._correlations(standard / self.scale)
        unit = LOGIT / self.scale
        self._gaps = np.ascontiguousarray((unit * gaps).reshape(flat.shape), np.float32)
        predicted = unit * (gaps - errors) / np.sqrt(process.spread)[:, None, None]
        self.left_out = self._moments(predicted.reshape(flat.shape).astype(np.float32))
        self.errors, self.gaps = errors, gaps
        self.inside = np.abs(standard / self.scale) <= 1.96

    def moments(self, weights: F32) -> Moments:
        """Of points whose ``weights`` [point, n] were divided by √v."""
        parts = [
            self._moments(weights[start : start + _BLOCK] @ self._gaps)
            for start in range(0, len(weights), _BLOCK)
        ]
        return Moments(
            np.concatenate([part.mean for part in parts]),
            np.concatenate([part.lead for part in parts]),
            np.concatenate([part.own for part in parts]),
        )

    def _moments(self, logits: F32) -> Moments:
        """logits: [point, pair · item]."""
        z = np.clip(logits, -40, 40).reshape(len(logits), len(self.pairs), -1)
        beats = 1 / (1 + np.exp(-z))
        wins: list[F32] = [np.ones_like(beats[:, 0]) for _ in range(self.levels)]
        for place, (left, right) in enumerate(self.pairs):
            wins[left] *= beats[:, place]
            wins[right] *= 1 - beats[:, place]
        total = 1 / sum(wins[1:], wins[0])
        for level in range(self.levels):
            wins[level] *= total
        shape = (len(z), self.groups, self.levels)
        mean, own = np.empty(shape), np.empty(shape)
        lead = np.empty((len(z), self.groups, len(self.pairs)))
        turns = [np.zeros_like(wins[0]) for _ in range(self.levels)]
        for place, (left, right) in enumerate(self.pairs):
            both, gap = wins[left] + wins[right], wins[left] - wins[right]
            turn = beats[:, place] * (1 - beats[:, place]) * both * np.float32(_DENSITY)
            together = np.maximum(self._sum(turn) ** 2 - self._sum(turn * turn), 0)
            rho = self.correlation[:, place]
            lead[:, :, place] = self._sum(both - gap * gap) + 4 * rho * together
            turns[left] += turn
            turns[right] += turn
        rho = self.correlation.mean(axis=1)
        for level in range(self.levels):
            p, turn = wins[level], turns[level]
            mean[:, :, level] = self._sum(p)
            together = np.maximum(self._sum(turn) ** 2 - self._sum(turn * turn), 0)
            own[:, :, level] = self._sum(p * (1 - p)) + rho * together
        return Moments(mean, lead, own)

    def _sum(self, values: F32) -> F64:
        return np.asarray(values @ self._member, dtype=np.float64)

    def _scales(self, standard: F64) -> F64:
        """Scale s of each [pair, item], drawn towards its group's."""
        square = (standard**2).mean(axis=0)
        pooled = (square @ self._member / self.sizes) @ self._member.T
        n = len(standard)
        found = (n * square + PRIOR_WEIGHT * pooled) / (n + PRIOR_WEIGHT)
        return np.asarray(np.sqrt(np.maximum(found, 1e-12)))

    def _correlations(self, standard: F64) -> F64:
        """ρ of each [group, pair]."""
        n = len(standard)
        sums = standard @ self._member
        squares = (standard**2) @ self._member
        count = self.sizes * (self.sizes - 1)
        found = (sums**2 - squares).mean(axis=0) / np.maximum(count, 1)
        drawn = (n * found + PRIOR_WEIGHT * PRIOR_CORRELATION) / (n + PRIOR_WEIGHT)
        return np.asarray(np.clip(drawn, 0, 1).T)


class Chances:
    """What a fitted process says of the wanted combinations of a board."""

    def __init__(self, board: Board, wants: Sequence[Want], scores: F32, process: Process) -> None:
        self.board, self.wants, self.process = board, tuple(wants), process
        main = board.main
        of_item = np.asarray(main.of_item)
        domains = [np.flatnonzero(of_item == place) for place in range(len(main.domains))]
        self.main = Tally(scores[:, board.spans[0]], domains, len(main.levels), process)
        self.guards = [
            Tally(scores[:, span], [np.arange(len(guard.part.of_item))], len(guard.part.levels),
                  process)
            for guard, span in zip(board.guards, board.spans[1:], strict=True)
        ]  # fmt: skip
        self.scores = scores

    @cached_property
    def inflation(self) -> float:
        """κ²: mean square of the leads' standardised leave-one-out errors."""
        main, found = self.board.main, self.main.left_out
        wins = main.wins(self.scores[:, self.board.spans[0]]) / main.unit
        squares = [
            (wins[:, :, a] - wins[:, :, b] - found.mean[:, :, a] + found.mean[:, :, b]) ** 2
            / (found.lead[:, :, place] + 0.25)
            for place, (a, b) in enumerate(self.main.pairs)
        ]
        z = np.minimum(np.stack(squares), 16.0)  # one wild point must not drown the others
        count = z.shape[1] * z.shape[2]
        return float((z.mean() * count + PRIOR_WEIGHT) / (count + PRIOR_WEIGHT))

    def scaled(self, points: F64) -> F32:
        """The weights of ``points``, divided by √v: all that the probabilities need."""
        weights, v = self.process.weights(points)
        return np.asarray(weights / np.sqrt(v)[:, None], dtype=np.float32)

    def dominance(self, found: Moments) -> F64:
        """How likely each level dominates, [point, domain, level]."""
        chance = np.ones_like(found.mean)
        for place, (a, b) in enumerate(self.main.pairs):
            sd = np.sqrt(self.inflation * (found.lead[:, :, place] + 0.25))
            gap = found.mean[:, :, a] - found.mean[:, :, b]
            chance[:, :, a] *= normal((gap - 0.5) / sd)
            chance[:, :, b] *= normal((-gap - 0.5) / sd)
        return np.asarray(chance / np.maximum(chance.sum(axis=-1, keepdims=True), 1))

    def of(self, weights: F32) -> F64:
        """How likely each want is hit, [point, want], of ``scaled`` weights."""
        found = self.main.moments(weights)
        return self._wants(found, self._guards(weights))

    def margins(self, weights: F32, wants: NDArray[np.intp]) -> tuple[F64, F64]:
        """(mean, sd) of the margins of ``wants``, [point, want]: of the tightest bound's lead."""
        found = self.main.moments(weights)
        shape = (*found.mean.shape, self.main.levels)
        lead, sd = np.full(shape, np.inf), np.ones(shape)
        for place, (a, b) in enumerate(self.main.pairs):
            gap = found.mean[:, :, a] - found.mean[:, :, b]
            loose = np.sqrt(self.inflation * (found.lead[:, :, place] + 0.25))
            lead[:, :, a, b], lead[:, :, b, a] = gap, -gap
            sd[:, :, a, b] = sd[:, :, b, a] = loose
        sizes = self.main.sizes[:, None]
        rival = lead.argmin(axis=-1)[..., None]
        lead = np.take_along_axis(lead, rival, -1)[..., 0] / sizes
        sd = np.take_along_axis(sd, rival, -1)[..., 0] / sizes
        guards = [self._guard_margin(place, weights) for place in range(len(self.guards))]
        mean, loose = np.empty((2, len(weights), len(wants)))
        for column, number in enumerate(wants):
            bounds = guards + self._bounds(self.wants[number], found, lead, sd)
            means = np.stack([bound[0] for bound in bounds])
            tightest = means.argmin(axis=0)[None]
            mean[:, column] = np.take_along_axis(means, tightest, 0)[0]
            loose[:, column] = np.take_along_axis(np.stack([b[1] for b in bounds]), tightest, 0)[0]
        return mean, loose

    def _bounds(self, want: Want, found: Moments, lead: F64, sd: F64) -> list[tuple[F64, F64]]:
        """(mean, sd) of the distance from each bound of ``want``."""
        main, bounds = self.board.main, []
        for domain, level in want.levels:
            d, k = main.domains.index(domain), main.levels.index(level)
            bounds.append((lead[:, d, k], sd[:, d, k]))
            if floor := float(want.floor(domain)):
                loose = np.sqrt(self.inflation * (found.own[:, d, k] + 0.25))
                size = self.main.sizes[d]
                bounds.append((found.mean[:, d, k] / size - floor, loose / size))
        return bounds

    def _guard_margin(self, place: int, weights: F32) -> tuple[F64, F64]:
        guard, tally = self.board.guards[place], self.guards[place]
        found, level = tally.moments(weights), guard.part.levels.index(guard.level)
        loose = np.sqrt(self.inflation * (found.own[:, 0, level] + 0.25))
        size = tally.sizes[0]
        return found.mean[:, 0, level] / size - float(guard.floor), loose / size

    def known(self) -> F64:
        """The same at the known points, each left out."""
        return self._wants(self.main.left_out, self._guards(None))

    def _wants(self, found: Moments, guards: F64) -> F64:
        dominant = self.dominance(found)
        main = self.board.main
        chance = np.repeat(guards[:, None], len(self.wants), axis=1)
        for column, want in enumerate(self.wants):
            for domain, level in want.levels:
                d, k = main.domains.index(domain), main.levels.index(level)
                one, floor = dominant[:, d, k], float(want.floor(domain))
                if floor:
                    need = np.ceil(floor * self.main.sizes[d] - 1e-9) - 0.5
                    sd = np.sqrt(self.inflation * (found.own[:, d, k] + 0.25))
                    one = np.minimum(one, normal((found.mean[:, d, k] - need) / sd))
                chance[:, column] *= one
        return chance

    def _guards(self, weights: F32 | None) -> F64:
        chance = np.ones(len(self.scores) if weights is None else len(weights))
        for guard, tally in zip(self.board.guards, self.guards, strict=True):
            found = tally.left_out if weights is None else tally.moments(weights)
            level = guard.part.levels.index(guard.level)
            need = np.ceil(float(guard.floor) * tally.sizes[0] - 1e-9) - 0.5
            sd = np.sqrt(self.inflation * (found.own[:, 0, level] + 0.25))
            chance *= normal((found.mean[:, 0, level] - need) / sd)
        return chance


def normal(z: F64) -> F64:
    """Φ's stand-in: see the top."""
    return np.asarray(1 / (1 + np.exp(np.clip(-LOGIT * z, -60, 60))))
