"""Coefficients on tensors: exact until they are rounded, once."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from avops.knobs.dials import Dials, parse_rules
from avops.recipe import round_f32


def dials(*where: str) -> Dials:
    """Two dials on two tensors."""
    made = Dials(("a", "b"), parse_rules(where, ()), ("w", "v"), "base")
    made.place(("w", "v"))
    return made


def test_a_rule_scales_what_was_written() -> None:
    one = dials("a:w=0.3")
    rows = one.rows(one.exact({"a": "0.1"}))
    assert rows.dtype == np.float32
    assert rows.tolist() == [[round_f32(Fraction(3, 100)), 0], [round_f32(Fraction(1, 10)), 0]]
    # Rounding λ first would give another number.
    assert np.float32(0.1) * np.float32(0.3) != rows[0, 0]


def test_what_is_zero_in_float32_is_dropped_whatever_rules_say() -> None:
    one = dials("*=1e30")
    assert not one.rows(one.exact({"a": "1e-47"})).any()
    assert one.rows(one.exact({"a": "1e-45"})).any(axis=0).tolist() == [True, False]


def test_a_float_means_its_shortest_text() -> None:
    found = dials().exact({"a": 0.1, "b": 0.123456789})
    assert found == {"a": Fraction(1, 10), "b": Fraction(123456789, 10**9)}
