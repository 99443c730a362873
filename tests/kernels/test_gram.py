"""gram: backends against the reference, bit for bit, and the reference against exact sums."""

from __future__ import annotations

import itertools
import math
from array import array

import numpy as np
import pytest

from avops.dtypes import BF16, F32
from avops.kernels import Operand, Term, combine, gram
from avops.kernels.combine.cases import Case
from avops.kernels.gram import cases
from avops.kernels.rounding import widen
from guarded import Guarded


def made(case: Case) -> tuple[Operand, list[Term], Operand]:
    base, terms = case.inputs()
    out = Guarded(case.n, case.out)
    combine(base, terms[:1], out.operand, backend="reference")
    return base, terms, out.operand


@pytest.mark.parametrize("case", list(cases.cases()), ids=str)
def test_backends_agree(case: Case, fast_backend: str) -> None:
    base, terms, out = made(case)
    expected = gram(base, terms, out, backend="reference")
    found = gram(base, terms, out, backend=fast_backend)
    assert len(found) == (len(terms) + 1) * (len(terms) + 2) // 2
    assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("fill", ["weights", "bits"])
def test_the_sums_are_the_inner_products(fill: str, backend: str) -> None:
    case = Case(1003, BF16, BF16, ((BF16, True), (F32, False)), fill)
    base, terms, out = made(case)
    with np.errstate(all="ignore"):
        origin = widen(base)
        deltas = [widen(t.values) - origin if t.aligned else widen(t.values) for t in terms]
        rows = [np.float64(t.lam) * d for t, d in zip(terms, deltas, strict=True)]
        rows.append(widen(out).astype(np.float64) - origin)
    good = np.isfinite(rows).all(axis=0)
    assert good.sum() > 900
    found = gram(base, terms, out, backend=backend)
    for (one, two), value in zip(
        itertools.combinations_with_replacement(rows, 2), found, strict=True
    ):
        products = one[good] * two[good]
        # n additions and a product, each off by at most half an ulp: n · 2^-53 of Σ|product|.
        bound = 1003 * 2.0**-53 * math.fsum(np.abs(products))
        assert abs(value - math.fsum(products)) <= bound


def test_elements_with_a_nonfinite_row_count_as_nothing(backend: str) -> None:
    base = Operand(np.array([1, 1, np.nan, 1], np.float32), F32)
    delta = Operand(np.array([2, np.inf, 2, 3], np.float32), F32)
    out = Operand(np.array([3, 3, 3, np.inf], np.float32), F32)
    assert gram(base, [Term(delta, 0.5, False)], out, backend=backend) == array("d", [1, 2, 4])


def test_what_does_not_fit_is_refused() -> None:
    base = Operand(np.zeros(4, np.float32), F32)
    short = Operand(np.zeros(3, np.float32), F32)
    with pytest.raises(ValueError, match="out has 3 elements, expected 4 as in base"):
        gram(base, [], short)
    with pytest.raises(ValueError, match="term 0 has 3 elements"):
        gram(base, [Term(short, 1.0, False)], base)
