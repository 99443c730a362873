"""How well annotators meet the levels, and each other: accuracy, confusion, kappa.

Cohen's kappa is scikit-learn's. Intervals of accuracies of one annotator are Wilson's. All other
intervals are the bootstrap's over items, 2.5 and 97.5 % of 10,000 draws from one seed: an item
keeps the labels of all its annotators, which are not independent.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from avops.align.data.annotations import POOLED, Annotation, Annotations
from avops.align.data.kappa import (
    Interval,
    cohen,
    fleiss_kappas,
    item_intervals,
    kappas,
    table_interval,
)
from avops.errors import MissingExtraError
from avops.score.intervals import wilson

if TYPE_CHECKING:
    from avops.align.data.kappa import Counts, Floats


@dataclass(frozen=True)
class Rater:
    """One annotator, or all of them, against the true level. kappa: None where it is undefined.

    confusion: [true level, label], counts.
    """

    domain: str | None
    annotator: str
    n: int
    right: int
    accuracy_interval: Interval
    kappa: float | None
    kappa_interval: Interval | None
    confusion: tuple[tuple[int, ...], ...]

    @property
    def accuracy(self) -> float:
        """The share of labels that are the true level."""
        return self.right / self.n


@dataclass(frozen=True)
class Pair:
    """Two annotators on the items that both labelled."""

    a: str
    b: str
    n: int
    agreement: float
    kappa: float | None
    kappa_interval: Interval | None


@dataclass(frozen=True)
class Fleiss:
    """Fleiss' kappa of all annotators, on the items that each of them labelled."""

    n: int
    annotators: int
    kappa: float | None
    kappa_interval: Interval | None


@dataclass(frozen=True)
class Agreement:
    """Everything about one annotations file.

    raters: by domain (None: all), the annotators and then them pooled. fleiss: with three
    annotators or more.
    """

    source: str
    items: int
    levels: tuple[str, ...]
    labels: tuple[str, ...]
    raters: tuple[Rater, ...]
    pairs: tuple[Pair, ...]
    fleiss: Fleiss | None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "source": self.source,
            "items": self.items,
            "levels": list(self.levels),
            "labels": list(self.labels),
            "raters": [{**_fields(rater), "accuracy": rater.accuracy} for rater in self.raters],
            "pairs": [_fields(pair) for pair in self.pairs],
            "fleiss": None if self.fleiss is None else _fields(self.fleiss),
        }


def agreement(found: Annotations) -> Agreement:
    """Measure the agreement in ``found``. Raises MissingExtraError without scikit-learn."""
    _require_sklearn()
    domains: list[str | None] = [None]
    if len(found.domains) > 1:
        domains = [*found.domains, None]
    raters = []
    for domain in domains:
        entries = found.of(domain)
        for name in found.annotators:
            own = [entry for entry in entries if entry.annotator == name]
            if own:
                raters.append(_rater(domain, name, own, found))
        raters.append(_pooled(domain, entries, found))
    pairs = [
        pair
        for a, b in itertools.combinations(found.annotators, 2)
        if (pair := _pair(a, b, found)) is not None
    ]
    return Agreement(
        source=found.source,
        items=len({entry.item for entry in found.entries}),
        levels=found.levels,
        labels=found.labels,
        raters=tuple(raters),
        pairs=tuple(pairs),
        fleiss=_fleiss(found) if len(found.annotators) > 2 else None,
    )


def _rater(
    domain: str | None, name: str, entries: Sequence[Annotation], found: Annotations
) -> Rater:
    table = _table([(e.level, e.label) for e in entries], found.labels)
    right = sum(entry.level == entry.label for entry in entries)
    return Rater(
        domain=domain,
        annotator=name,
        n=len(entries),
        right=right,
        accuracy_interval=wilson(right, len(entries)),
        kappa=cohen([e.level for e in entries], [e.label for e in entries], found.labels),
        kappa_interval=table_interval(table),
        confusion=_rows(table, found.levels),
    )


def _pooled(domain: str | None, entries: Sequence[Annotation], found: Annotations) -> Rater:
    """All annotators; intervals by drawing whole items."""
    import numpy as np

    labels, order = found.labels, {e.item: None for e in entries}
    place = {item: i for i, item in enumerate(order)}
    tables = np.zeros((len(order), len(labels), len(labels)), np.int64)
    for entry in entries:
        tables[place[entry.item], labels.index(entry.level), labels.index(entry.label)] += 1
    right = sum(entry.level == entry.label for entry in entries)

    def statistics(weights: Counts) -> Floats:
        drawn = np.tensordot(weights, tables, 1)
        accuracy = np.trace(drawn, axis1=1, axis2=2) / drawn.sum((1, 2))
        return np.stack([accuracy, kappas(drawn)], 1)

    accuracy, kappa = item_intervals(len(order), statistics)
    assert accuracy is not None
    return Rater(
        domain=domain,
        annotator=POOLED,
        n=len(entries),
        right=right,
        accuracy_interval=accuracy,
        kappa=cohen([e.level for e in entries], [e.label for e in entries], labels),
        kappa_interval=kappa,
        confusion=_rows(tables.sum(0), found.levels),
    )


def _pair(a: str, b: str, found: Annotations) -> Pair | None:
    """None where no item was labelled by both."""
    by = {name: {e.item: e.label for e in found.entries if e.annotator == name} for name in (a, b)}
    both = [(label, by[b][item]) for item, label in by[a].items() if item in by[b]]
    if not both:
        return None
    return Pair(
        a=a,
        b=b,
        n=len(both),
        agreement=sum(x == y for x, y in both) / len(both),
        kappa=cohen([x for x, _ in both], [y for _, y in both], found.labels),
        kappa_interval=table_interval(_table(both, found.labels)),
    )


def _fleiss(found: Annotations) -> Fleiss:
    import numpy as np

    count = len(found.annotators)
    labels: dict[str, list[str]] = {}
    for entry in found.entries:
        labels.setdefault(entry.item, []).append(entry.label)
    complete = [given for given in labels.values() if len(given) == count]
    if not complete:
        return Fleiss(0, count, None, None)
    counts = np.array([[given.count(label) for label in found.labels] for given in complete])

    def statistics(weights: Counts) -> Floats:
        # As draws differ in how often an item comes, so do the weights of its agreement.
        observed = weights @ (counts**2).sum(1) / len(complete)
        observed = (observed - count) / (count * (count - 1))
        expected = ((weights @ counts / (len(complete) * count)) ** 2).sum(1)
        with np.errstate(invalid="ignore", divide="ignore"):
            kappa = np.where(expected < 1, (observed - expected) / (1 - expected), np.nan)
        return kappa[:, None]

    value = float(fleiss_kappas(counts[None])[0])
    (interval,) = item_intervals(len(complete), statistics)
    return Fleiss(len(complete), count, None if math.isnan(value) else value, interval)


def _table(pairs: Sequence[tuple[str, str]], labels: Sequence[str]) -> Counts:
    import numpy as np

    table = np.zeros((len(labels), len(labels)), np.int64)
    for a, b in pairs:
        table[labels.index(a), labels.index(b)] += 1
    return table


def _rows(table: Counts, levels: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """The rows of the true levels, which are the first labels."""
    return tuple(tuple(int(count) for count in row) for row in table[: len(levels)])


def _fields(record: Rater | Pair | Fleiss) -> dict[str, Any]:
    return {name: getattr(record, name) for name in record.__dataclass_fields__}


def _require_sklearn() -> None:
    try:
        import sklearn.metrics  # noqa: F401
    except ImportError:
        raise MissingExtraError("scikit-learn", "align", "avops data agreement") from None
