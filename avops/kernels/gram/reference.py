"""gram in numpy: the contract, spelled out."""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Sequence

import numpy as np

from avops.kernels.operands import Operand, Term
from avops.kernels.rounding import widen

_LANES = 8


def available() -> tuple[bool, str]:
    """Always: numpy is a dependency."""
    return True, "numpy, always there"


def run(base: Operand, terms: Sequence[Term], out: Operand) -> array[float]:
    """The upper triangle of the inner products, row by row."""
    origin = widen(base)
    rows = np.zeros((len(terms) + 1, -(-origin.size // _LANES) * _LANES))
    here = rows[:, : origin.size]
    with np.errstate(all="ignore"):
        for row, term in zip(here, terms, strict=False):
            values = widen(term.values)
            row[:] = np.float64(term.lam) * (values - origin if term.aligned else values)
        here[-1] = widen(out).astype(np.float64) - origin
    here[:, ~np.isfinite(here).all(axis=0)] = 0
    found = array("d")
    for one, two in itertools.combinations_with_replacement(rows, 2):
        products = (one * two).reshape(-1, _LANES)
        # cumsum adds in order; sum would add in pairs.
        lanes = np.cumsum(np.vstack([np.zeros(_LANES), products]), axis=0)[-1]
        found.append(float(np.cumsum([0.0, *lanes])[-1]))
    return found
