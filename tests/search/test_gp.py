"""The Gaussian process against dense algebra spelt out, and what is made of it."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from avops.search.board import Want
from avops.search.strategies.chances import LOGIT, Chances, Tally, normal
from avops.search.strategies.gp import LENGTHS, NUGGETS, Kernel, Process, best_kernel
from avops.search.strategies.joint import any_hit, quick_hits
from search.truths import board_of, truth

RNG = np.random.default_rng(0)
X = RNG.uniform(-1, 1, (18, 2))
Y = np.stack([X[:, 0] ** 2 - X[:, 1], np.sin(2 * X[:, 0]) * X[:, 1], 3 + 0 * X[:, 0]], axis=1)
KERNEL = Kernel((0.7, 1.3), 1e-3)


def dense(kernel: Kernel, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The formula, entry by entry."""
    found = np.empty((len(a), len(b)))
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            r = np.sqrt(sum(((x - y) / kernel.lengths) ** 2))
            matern = (1 + 5**0.5 * r + 5 / 3 * r * r) * np.exp(-(5**0.5) * r)
            square = sum(x[d] * x[e] * y[d] * y[e] for d in range(len(x)) for e in range(d, len(x)))
            found[i, j] = matern + 100 + 100 * x @ y + 30 * square
    return found


def close(a: object, b: object) -> None:
    # float64 with a condition number of about 2e6: 2e6 · 1.1e-16 · 18 terms, times the size (≤ 300)
    np.testing.assert_allclose(a, b, rtol=0, atol=2e6 * 1.1e-16 * 18 * 300)


def test_the_kernel_is_the_formula() -> None:
    close(KERNEL.between(X, X[:5]), dense(KERNEL, X, X[:5]))
    close(KERNEL.at(X), np.diag(dense(KERNEL, X, X)))


def test_predictions_are_those_of_the_formulas() -> None:
    process, new = Process.of(KERNEL, X), RNG.uniform(-1, 1, (7, 2))
    known = dense(KERNEL, X, X) + KERNEL.nugget * np.eye(len(X))
    cross = dense(KERNEL, new, X)
    weights, v = process.weights(new)
    close(weights, np.linalg.solve(known, cross.T).T)
    covariance = dense(KERNEL, new, new) - cross @ np.linalg.solve(known, cross.T)
    close(process.covariance(new), covariance)
    close(v, np.diag(covariance) + KERNEL.nugget)
    assert (v > 0).all()


def test_leaving_one_out_is_leaving_one_out() -> None:
    process = Process.of(KERNEL, X)
    errors = process.left_out(Y)
    for i in range(len(X)):
        rest = np.arange(len(X)) != i
        weights, v = Process.of(KERNEL, X[rest]).weights(X[i : i + 1])
        close(errors[i], Y[i] - weights[0] @ Y[rest])
        close(process.spread[i], v[0])


def test_known_points_are_met_and_a_quadratic_is_found_far_away() -> None:
    process = Process.of(Kernel((1.0, 1.0), 1e-6), X)
    truth = 1 + X[:, 0] - 2 * X[:, 1] + X[:, 0] * X[:, 1]
    weights, _ = process.weights(X)
    # The nugget is all that keeps it from the values: η times K⁻¹ y, which is below 100 here.
    assert np.abs(weights @ truth - truth).max() < 1e-6 * 100
    far, _ = process.weights(np.array([[1.5, -1.5]]))
    wide = abs(float(far[0] @ truth) - (1 + 1.5 + 3 - 2.25))
    assert wide < 0.1, wide  # the trend's prior variance, 30, against what is left, below 1


@pytest.mark.parametrize("axis", [0, 1])
def test_an_axis_that_matters_gets_the_shorter_length(axis: int) -> None:
    points = np.random.default_rng(1).uniform(-1, 1, (60, 2))
    outputs = np.stack([np.sin(4 * points[:, axis] + shift) for shift in (0, 1, 2)], axis=1)
    kernel = best_kernel(points, outputs)
    assert kernel.lengths[axis] < kernel.lengths[1 - axis] / 2
    assert all(LENGTHS[0] * 0.99 <= one <= LENGTHS[1] * 1.01 for one in kernel.lengths)


def test_the_fitted_kernel_is_the_likeliest_around() -> None:
    """By −2 log likelihood at the best common σ²: no last step of the search lowers it."""
    centred = Y[:, :2] - Y[:, :2].mean(axis=0)
    scaled = centred / np.sqrt((centred**2).mean(axis=0))

    def loss(place: np.ndarray) -> float:
        lengths, nugget = np.exp(place[:-1]), float(np.exp(place[-1]))
        known = dense(Kernel(tuple(lengths.tolist()), nugget), X, X) + nugget * np.eye(len(X))
        misfit = np.trace(scaled.T @ np.linalg.solve(known, scaled))
        return float(len(X) * np.log(misfit) + np.linalg.slogdet(known)[1])

    kernel = best_kernel(X, Y)
    place = np.log([*kernel.lengths, kernel.nugget])
    low, high = np.log([*[LENGTHS] * 2, NUGGETS]).T
    for axis, step in enumerate((0.175, 0.175, 0.375)):
        for moved in place + np.outer((-step, step), np.arange(3) == axis):
            # What the search calls a gain, and as much again for the rounding of both.
            assert loss(np.clip(moved, low, high)) > loss(place) - 2e-3


def test_noise_gets_a_nugget() -> None:
    noisy = np.random.default_rng(2).normal(size=(60, 40))
    smooth = np.sin(np.arange(1, 41) * RNG.uniform(-1, 1, (60, 1)))
    points = RNG.uniform(-1, 1, (60, 2))
    assert best_kernel(points, noisy).nugget > 0.1 * NUGGETS[1]
    del smooth
    assert best_kernel(points, np.repeat(points, 20, axis=1)).nugget < 1e-3


def test_outputs_that_never_change_do_not_disturb() -> None:
    assert best_kernel(X, Y) == best_kernel(X, Y[:, :2])


def tally(levels: int = 3, items: int = 12) -> tuple[Tally, Process, np.ndarray]:
    rng = np.random.default_rng(3)
    points = rng.uniform(-1, 1, (40, 1))
    slopes = rng.normal(0, 0.5, (items, levels))
    bends = rng.normal(0, 0.5, (items, levels))
    table = slopes * points[:, :, None] + bends * np.sin(3 * points[:, :, None])
    process = Process.fit(points, table.reshape(40, -1))
    groups = [np.arange(0, items, 2), np.arange(1, items, 2)]
    scores = table.reshape(40, -1).astype(np.float32)
    return Tally(scores, groups, levels, process), process, table


@pytest.mark.parametrize("levels", [2, 3, 4])
def test_expected_wins_add_up_and_follow_the_measured_ones(levels: int) -> None:
    found, _, table = tally(levels)
    moments = found.left_out
    # float32 sums of 6 items
    np.testing.assert_allclose(moments.mean.sum(axis=-1), 6.0, rtol=0, atol=6 * 6 * 2.0**-24 * 4)
    wins = np.eye(levels)[table.argmax(-1)]
    truth = np.stack([wins[:, group].sum(1) for group in (slice(0, 12, 2), slice(1, 12, 2))], 1)
    assert np.abs(moments.mean - truth).mean() < 0.25  # of 6 items
    assert (moments.lead >= 0).all()
    assert (moments.own >= 0).all()


def test_two_levels_are_one_normal_comparison() -> None:
    found, process, table = tally(2)
    gap = table[:, :, 0] - table[:, :, 1]
    order = np.r_[0:12:2, 1:12:2]
    errors = process.left_out(gap[:, order])
    z = (gap[:, order] - errors) / found.scale[0] / np.sqrt(process.spread)[:, None]
    p = normal(z)
    mean = np.stack([p[:, :6].sum(1), p[:, 6:].sum(1)], axis=1)
    # float32 logits up to 40: exp magnifies their rounding by at most p (1 − p) z ≤ .28
    np.testing.assert_allclose(found.left_out.mean[:, :, 0], mean, rtol=0, atol=6 * 40 * 2.0**-23)


def test_correlated_items_make_leads_less_certain() -> None:
    """Errors that all items share: ρ near 1, and a variance n times the independent one."""
    rng = np.random.default_rng(4)
    points = np.linspace(-1, 1, 40)[:, None]
    shared = rng.normal(0, 0.3, (40, 1, 1))
    lone = rng.normal(0, 0.3, (40, 20, 1))
    rho = {}
    for name, noise in (("shared", shared), ("lone", lone)):
        table = np.concatenate([noise + 0 * lone, 0 * lone], axis=2).reshape(40, -1)
        process = Process.fit(points, table)
        one = Tally(table.astype(np.float32), [np.arange(20)], 2, process)
        rho[name] = one.correlation[0, 0], one.left_out.lead.mean()
    assert rho["shared"][0] > 0.8
    assert rho["lone"][0] < 0.2
    assert rho["shared"][1] > 4 * rho["lone"][1]


def test_the_joint_chance_is_that_of_independent_draws_far_apart() -> None:
    """Two points with a coin's chance each, at distances where the kernel has forgotten."""
    rng = np.random.default_rng(5)
    points = np.linspace(-1, 1, 30)[:, None]
    board = board_of(1, 2)
    kernel = Kernel((0.15,), 0.5)
    scores = rng.normal(0, 1, (30, board.outputs)).astype(np.float32)
    process = Process.of(kernel, points)
    want = board.combinations()
    one = any_hit(
        board, want, process, scores, np.array([[0.01]]), inflation=1, samples=4000, seed=0
    )
    two = any_hit(
        board, want, process, scores, np.array([[0.01], [0.011]]), inflation=1, samples=4000, seed=0
    )
    assert one.sum() <= 1  # one point hits one combination at most
    assert (two >= one - 3 * 0.008).all()  # 4000 draws: sd below .008
    assert two.sum() > one.sum()
    again = any_hit(
        board, want, process, scores, np.array([[0.01]]), inflation=1, samples=4000, seed=0
    )
    assert (again == one).all()


def test_chances_of_floors_and_fewer_domains() -> None:
    """A floor can only take away, and leaving a domain free can only add."""
    rng = np.random.default_rng(6)
    points = rng.uniform(-1, 1, (30, 2))
    board = board_of(2, 10)
    slopes = rng.normal(0, 1, (2, board.outputs))
    scores = (points @ slopes + rng.normal(0, 0.3, (30, board.outputs))).astype(np.float32)
    wants = (
        Want((("med", "exp"), ("fin", "avd"))),
        Want((("med", "exp"), ("fin", "avd")), (("fin", Fraction(4, 5)),)),
        Want((("med", "exp"),)),
    )
    process = Process.fit(points, scores.astype(np.float64))
    chances = Chances(board, wants, scores, process)
    found = chances.of(chances.scaled(rng.uniform(-1, 1, (200, 2))))
    assert (found[:, 1] <= found[:, 0]).all()
    assert (found[:, 2] >= found[:, 0]).all()
    assert (found[:, 1] < found[:, 0] - 0.1).any()
    mean, sd = chances.margins(chances.scaled(points), np.array([0, 1]))
    hit, margin = board.judge(scores, wants[:2])
    # The noise, .3 nats against differences of about one, moves a lead by an item or two of ten.
    assert np.abs(mean - margin)[hit].mean() < 0.2
    assert (sd > 0).all()
    assert LOGIT > 1.7


@pytest.mark.parametrize("guard", [False, True])
def test_quick_hits_are_the_boards(guard: bool) -> None:
    """On rows that follow the truth, so that every combination comes up; no two scores tie."""
    found = truth(2, seed=0, guard=guard)
    board, space = found.problem.board, found.problem.space
    rows = found.formula(space.lams)
    wants = (*found.problem.wants, Want((("fin", "exp"),), (("fin", Fraction(3, 5)),)))
    expected, _ = board.judge(rows, wants)
    assert expected.any(axis=0).sum() >= 6
    assert (quick_hits(board, wants, rows) == expected).all()
