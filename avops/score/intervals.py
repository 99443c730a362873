"""Intervals and tests for shares of items."""

from __future__ import annotations

import math

Z95 = 1.959963984540054
"""The 97.5 % quantile of the normal distribution: two-sided 95 %."""


def wilson(wins: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % score interval for a share of ``wins`` in ``n``.

    Source: E. B. Wilson, JASA 22 (1927) 209–212; no continuity correction. Ties make ``wins`` a
    real number between counts; the formula is used as it stands, which interpolates.
    """
    share, z2 = wins / n, Z95 * Z95
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    # At 0 and n wins one end is exactly the share; rounding must not push it past.
    return min(max(0.0, centre - half), share), max(min(1.0, centre + half), share)


def sign_test(gained: int, lost: int) -> float:
    """The exact two-sided p-value of the sign test, that a change goes up as likely as down.

    Twice the probability of min(gained, lost) or fewer heads in gained + lost tosses of a fair
    coin, at most 1. Where every change is a whole win this is McNemar's exact test. The sum is in
    whole numbers and rounded once.
    """
    n, few = gained + lost, min(gained, lost)
    ways = term = 1
    for k in range(few):
        term = term * (n - k) // (k + 1)
        ways += term
    return min(1.0, 2 * ways / (1 << n))
