"""The effective λ against least squares over all elements."""

from __future__ import annotations

import itertools
import json
from array import array
from pathlib import Path

import numpy as np
import pytest

from avops.kernels import effective
from avops.kernels.effective import SAMPLE, STRIDE, Sums, gains, inner_products, sampled
from avops.recipe import Recipe, Source, Term, parse_lam
from avops.stream import merge, plan_merge
from bits import bf16, from_bf16
from families import Save


def test_the_sample_is_the_same_however_the_tensor_is_cut() -> None:
    count = 2 * STRIDE + SAMPLE + 10
    whole = [i for part in sampled(0, count) for i in range(part.start, part.stop)]
    assert whole == [
        *range(SAMPLE),
        *range(STRIDE, STRIDE + SAMPLE),
        *range(2 * STRIDE, 2 * STRIDE + SAMPLE),
    ]
    cuts = [0, 1, SAMPLE - 1, SAMPLE, STRIDE - 1, STRIDE + 7, 2 * STRIDE + 5, count]
    parts = []
    for start, stop in itertools.pairwise(cuts):
        parts += [start + i for p in sampled(start, stop - start) for i in range(p.start, p.stop)]
    assert parts == whole


def test_gains_are_least_squares_in_any_order() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 500))
    change = 0.8 * a + 1.3 * b + 0.01 * rng.standard_normal(500)
    rows = np.stack([a, b, change])
    parts = [inner_products((0, 1), rows[:, i : i + 50]) for i in range(0, 500, 50)]
    found = gains(2, parts)
    expected = np.linalg.lstsq(np.stack([a, b], axis=1), change, rcond=None)[0]
    assert found == tuple(float(f"{x:.6g}") for x in expected)
    assert gains(2, parts[::-1]) == found


def test_sums_that_cancel_do_so_in_any_order() -> None:
    parts = [Sums((0,), array("d", [1.0, part, 0.0])) for part in (1e17, 3.0, -1e17)]
    assert all(gains(1, order) == (1.0,) for order in itertools.permutations(parts))


def test_what_the_sample_cannot_tell() -> None:
    assert gains(2, []) == (None, None)
    rows = np.stack([np.zeros(9), np.ones(9), np.full(9, 0.5)])
    assert gains(2, [inner_products((0, 1), rows)]) == (None, 0.5)


def test_nonfinite_elements_are_left_out() -> None:
    rows = np.array([[1.0, 2.0, np.inf], [1.0, 2.0, 5.0]])
    assert inner_products((0,), rows) == Sums((0,), array("d", [5.0, 5.0, 5.0]))


@pytest.mark.parametrize("lam", ["0.1", "-0.3", "1"])
def test_bf16_swallows_small_updates_and_the_report_says_so(
    save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lam: str
) -> None:
    """With the whole tensor as the sample, the report is the exact projection."""
    rng = np.random.default_rng(3)
    count = 20_000
    monkeypatch.setattr(effective, "SAMPLE", STRIDE)
    base = bf16(rng.standard_normal(count).astype(np.float32) * np.float32(0.02))
    moved = from_bf16(base) + rng.standard_normal(count).astype(np.float32) * np.float32(5e-5)
    aligned = bf16(moved)
    paths = [save("b.safetensors", {"w": base}), save("a.safetensors", {"w": aligned})]
    term = Term(Source("med", str(paths[1])), parse_lam(lam, "test"), lam)
    report = merge(plan_merge(Recipe(str(paths[0]), (term,)), tmp_path / "out.safetensors"))
    out = (tmp_path / "out.safetensors").read_bytes()[-2 * count :]
    change = from_bf16(np.frombuffer(out, np.uint16)).astype(np.float64) - from_bf16(base)
    delta = from_bf16(aligned).astype(np.float64) - from_bf16(base)
    exact = float(change @ delta / (delta @ delta))
    (found,) = report.outputs[0].measured["effective_lam"]
    assert found == pytest.approx(exact, rel=1e-3)  # reported with four digits
    assert found == 1 if lam == "1" else abs(found) < 0.5 * abs(float(lam))
    record = json.loads((tmp_path / "out.avops_recipe.json").read_text())
    assert record["measured"] == report.outputs[0].measured
    assert report.outputs[0].measured["unchanged"] == int(np.count_nonzero(change == 0))
