"""λ: decimal to float32, rounded once."""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avops.errors import RecipeError
from avops.recipe import parse_lam, round_f32
from avops.recipe.coefficient import parse_range, plain_text


def nearest_by_search(value: Fraction) -> np.float32:
    """The nearest float32 by comparing with both neighbours of a guess, in exact arithmetic."""
    guess = np.float32(float(value))
    around = [np.nextafter(guess, np.float32(-math.inf)), guess]
    around.append(np.nextafter(guess, np.float32(math.inf)))
    finite = [x for x in around if np.isfinite(x)]
    return min(finite, key=lambda x: (abs(Fraction(float(x)) - value), int(x.view(np.uint32)) & 1))


@given(st.decimals(min_value=-(10**30), max_value=10**30, allow_nan=False, allow_infinity=False))
def test_round_f32_is_the_nearest(value: Decimal) -> None:
    assert round_f32(value) == nearest_by_search(Fraction(value))


def test_round_f32_rounds_once() -> None:
    # Just above the tie between 1 and 1 + 2^-23: as a double it is the tie itself, which would
    # then round to even, down to 1.
    above_tie = 1 + Fraction(1, 2**24) + Fraction(1, 2**60)
    assert np.float32(float(above_tie)) == 1
    assert round_f32(above_tie) == 1 + 2**-23


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("-1", -1.0),
        (".6", np.float32(0.6)),
        ("0.1", np.float32(0.1)),
        ("+2.", 2.0),
        ("1e-3", np.float32(0.001)),
        ("-0", 0.0),
        ("1e-70", 0.0),
        ("1e-45", np.float32(1e-45)),  # subnormal
        ("1.000000059604644775390625", 1.0),  # 1 + 2^-24, a tie: to even
        ("1.000000178813934326171875", 1 + 2**-22),  # 1 + 3 · 2^-24
        ("3.4e38", np.float32(3.4e38)),
    ],
)
def test_parse_lam(text: str, value: float) -> None:
    assert parse_lam(text, "--av x") == float(value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "nan",
        "inf",
        "-inf",
        "1_0",
        "0x1",
        "1e",
        "١",
        "--1",
        "1,5",
        " 1",
        "1e9999999999999999999",
        "1e-9999999999999999999",
    ],
)
def test_parse_lam_refuses(text: str) -> None:
    with pytest.raises(RecipeError, match=r"--av x: λ is .*expected a finite decimal number"):
        parse_lam(text, "--av x")


@pytest.mark.parametrize("text", ["1e39", "3.5e38", "1e999999999"])
def test_parse_lam_refuses_overflow(text: str) -> None:
    with pytest.raises(RecipeError, match="not finite in float32"):
        parse_lam(text, "--av x")


def test_parse_range_is_exact() -> None:
    points = parse_range("-1.5:1:.1", "--av x")
    assert len(points) == 26
    assert (points[0], points[3], points[15], points[-1]) == ("-1.5", "-1.2", "0", "1")
    assert parse_range("1:1:.5", "--av x") == ("1",)
    assert len(parse_range("1:10000:1", "--av x")) == 10_000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1:0:.1", "START ≤ STOP"),
        ("0:1:0", "STEP > 0"),
        ("0:1:-1", "STEP > 0"),
        ("0:1", "START:STOP:STEP"),
        ("0:1:1e-9", "at most 10000"),
        ("a:1:1", "finite decimal"),
    ],
)
def test_parse_range_refuses(text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        parse_range(text, "--av x")


@pytest.mark.parametrize(
    ("text", "plain"),
    [("-.50", "-0.5"), ("+2.", "2"), ("1e-3", "0.001"), ("1e2", "100"), ("-0", "0"), ("10", "10")],
)
def test_plain_text(text: str, plain: str) -> None:
    assert plain_text(text) == plain
