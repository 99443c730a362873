"""Intervals and tests against published and independently computed values."""

from __future__ import annotations

from fractions import Fraction
from itertools import product

import pytest

from avops.score import sign_test, wilson


# R. G. Newcombe, Statistics in Medicine 17 (1998) 857-872, table I, method 3, to four decimals.
@pytest.mark.parametrize(
    ("wins", "n", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_against_published_values(wins: int, n: int, low: float, high: float) -> None:
    got = wilson(wins, n)
    assert (round(got[0], 4), round(got[1], 4)) == (low, high)
    mirrored = wilson(n - wins, n)  # symmetric in wins and losses
    assert (round(1 - mirrored[1], 4), round(1 - mirrored[0], 4)) == (low, high)


def test_wilson_stays_around_the_share() -> None:
    for n in (1, 2, 3, 7, 1000):
        for wins in (0, 1 / 3, n / 2, n - 1 / 3, n):
            low, high = wilson(wins, n)
            assert 0 <= low <= wins / n <= high <= 1
    assert wilson(0, 10)[0] == 0
    assert wilson(10, 10)[1] == 1
    assert wilson(3, 10)[0] < wilson(3.5, 10)[0] < wilson(4, 10)[0]


def enumerated(gained: int, lost: int) -> float:
    """Every outcome of the tosses, those at least as uneven as what was seen."""
    n = gained + lost
    uneven = sum(
        abs(2 * sum(tosses) - n) >= abs(gained - lost) for tosses in product((0, 1), repeat=n)
    )
    return float(Fraction(uneven, 2**n))


@pytest.mark.parametrize("gained", range(6))
@pytest.mark.parametrize("lost", range(7))
def test_the_sign_test_counts_every_outcome(gained: int, lost: int) -> None:
    assert sign_test(gained, lost) == enumerated(gained, lost)


def test_the_sign_test_at_its_ends() -> None:
    assert sign_test(0, 0) == 1
    assert sign_test(0, 5) == sign_test(5, 0) == 2 / 32
    assert sign_test(0, 1000) == 2.0**-999
    assert sign_test(0, 5000) == 0  # 2⁻⁴⁹⁹⁹ is below every float64
    # The normal approximation with continuity correction: 2·Φ(−(200 − 1) / √10000) = .0466.
    assert round(sign_test(5100, 4900), 4) == 0.0466


def test_the_sign_test_against_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    for gained, lost in [(1, 9), (12, 5), (40, 60), (7, 7), (311, 260)]:
        theirs = stats.binomtest(gained, gained + lost, 0.5).pvalue
        # Ours is rounded once; scipy's sums and gamma functions are good to about 1e-12.
        assert sign_test(gained, lost) == pytest.approx(theirs, rel=1e-10)
