"""Kappas and their intervals.

Of two raters only the table of their labels counts, and drawing n items anew is drawing from it n
times: a multinomial.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Counts = NDArray[np.int64]
    Floats = NDArray[np.float64]

DRAWS = 10_000
_SEED = 0
_AT_ONCE = 500  # draws of items that are in memory together
Interval = tuple[float, float]


def cohen(a: Sequence[str], b: Sequence[str], labels: Sequence[str]) -> float | None:
    """Cohen's kappa; None where both gave one and the same label throughout."""
    from sklearn.metrics import cohen_kappa_score

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the division 0/0 that None stands for
        value = float(cohen_kappa_score(a, b, labels=list(labels)))
    return None if math.isnan(value) else value


def kappas(tables: Counts) -> Floats:
    """Cohen's kappa of every table [draw, label, label] of counts; NaN where it is undefined.

    Source: J. Cohen, Educ. Psychol. Meas. 20 (1960) 37-46.
    """
    import numpy as np

    n = tables.sum((1, 2))
    observed = np.trace(tables, axis1=1, axis2=2) / n
    expected = (tables.sum(1) * tables.sum(2)).sum(1) / n**2
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(expected < 1, (observed - expected) / (1 - expected), np.nan)


def fleiss_kappas(counts: Counts) -> Floats:
    """Fleiss' kappa of every draw [draw, item, label] of label counts with equal sums.

    Source: J. L. Fleiss, Psychol. Bull. 76 (1971) 378-382.
    """
    import numpy as np

    raters = counts[0, 0].sum()
    items = counts.shape[1]
    observed = ((counts**2).sum((1, 2)) / items - raters) / (raters * (raters - 1))
    expected = ((counts.sum(1) / (items * raters)) ** 2).sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(expected < 1, (observed - expected) / (1 - expected), np.nan)


def table_interval(table: Counts) -> Interval | None:
    """The 95 % interval of Cohen's kappa of a table of counts."""
    import numpy as np

    n = int(table.sum())
    drawn = np.random.default_rng(_SEED).multinomial(n, table.ravel() / n, size=DRAWS)
    return _percentiles(kappas(drawn.reshape(DRAWS, *table.shape)))


def item_intervals(
    items: int, statistics: Callable[[Counts], Floats]
) -> tuple[Interval | None, ...]:
    """Intervals of the columns of ``statistics``, which takes how often each item was drawn."""
    import numpy as np

    random = np.random.default_rng(_SEED)
    shares = np.full(items, 1 / items)
    parts = [
        statistics(random.multinomial(items, shares, size=_AT_ONCE))
        for _ in range(DRAWS // _AT_ONCE)
    ]
    return tuple(_percentiles(column) for column in np.concatenate(parts).T)


def _percentiles(values: Floats) -> Interval | None:
    """The middle 95 % of the values that are defined; None where none is."""
    import numpy as np

    defined = values[~np.isnan(values)]
    if not len(defined):
        return None
    low, high = np.quantile(defined, (0.025, 0.975))
    return float(low), float(high)
