"""Sweeps: preference accuracy against one λ, every domain measured at every point."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from avops.recipe import Term

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from avops.score import Items, ScoreSummary
    from avops.search.evaluator import Evaluator

COLUMNS = (
    "av",
    "lam",
    "fixed",
    "domain",
    "level",
    "accuracy",
    "low",
    "high",
    "wins",
    "n",
    "ties",
    "dominant",
    "mean_logprob",
)


@dataclass(frozen=True, eq=False)
class Sweep:
    """A measured sweep.

    scores: S[point, item, level], float32. name: the AV whose λ varies. lams: its values as
    texts. fixed: the other terms. summaries: one per point. asked: points that were asked for;
    more than were measured after an interrupt.
    """

    name: str
    lams: tuple[str, ...]
    fixed: tuple[str, ...]
    scores: NDArray[np.float32]
    summaries: tuple[ScoreSummary, ...]
    asked: int = 0

    @property
    def interrupted(self) -> bool:
        """Whether points are missing."""
        return self.asked > len(self.lams)

    @property
    def levels(self) -> tuple[str, ...]:
        """The levels, in order."""
        return self.summaries[0].levels

    @property
    def domains(self) -> tuple[str, ...]:
        """The domains of the items, without the pooled one."""
        return tuple(part.domain for part in self.summaries[0].domains[:-1])


def sweep(
    evaluator: Evaluator,
    points: Sequence[Sequence[Term]],
    name: str,
    progress: Callable[[int, int], None] | None = None,
) -> Sweep:
    """Measure every recipe of ``points`` in turn; the λ of ``name`` varies, the others stay.

    ``progress(done, total)`` gets tokens over all points. An interrupt ends the sweep with the
    points measured so far, unless there is none yet: then it is raised.
    """
    import numpy as np

    scores = []
    try:
        for number, terms in enumerate(points):
            inner = None if progress is None else _shifted(progress, number, len(points))
            scores.append(evaluator.evaluate(terms, inner))
    except KeyboardInterrupt:
        if not scores:
            raise
    lams = [term.text for terms in points for term in terms if term.name == name]
    fixed = tuple(str(term) for term in points[0] if term.name != name)
    result = from_scores(name, tuple(lams[: len(scores)]), fixed, np.stack(scores), evaluator.items)
    return dataclasses.replace(result, asked=len(points))


def from_scores(
    name: str,
    lams: tuple[str, ...],
    fixed: tuple[str, ...],
    scores: NDArray[np.float32],
    items: Items,
) -> Sweep:
    """The sweep of scores S[point, item, level] measured earlier on ``items``."""
    from avops.score import summarise

    return Sweep(name, lams, fixed, scores, tuple(summarise(part, items) for part in scores))


def to_csv(result: Sweep) -> str:
    """One row per point, domain and level; columns as in COLUMNS."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(_rows(result))
    return out.getvalue()


def _rows(result: Sweep) -> Iterator[tuple[str | int | float, ...]]:
    fixed = " ".join(result.fixed)
    for lam, summary in zip(result.lams, result.summaries, strict=True):
        for part in summary.domains:
            for level in part.levels:
                yield (
                    result.name,
                    lam,
                    fixed,
                    part.domain,
                    level.level,
                    f"{level.accuracy:.6f}",
                    f"{level.low:.6f}",
                    f"{level.high:.6f}",
                    f"{level.wins:g}",
                    part.n,
                    part.ties,
                    part.dominant or "",
                    f"{level.mean_logprob:.6f}",
                )


def _shifted(
    progress: Callable[[int, int], None], number: int, count: int
) -> Callable[[int, int], None]:
    def update(done: int, total: int) -> None:
        progress(number * total + done, count * total)

    return update
