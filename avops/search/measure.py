"""Many candidates on one model, into one table: what is in it already is not measured again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from avops.recipe import Term, parse_lam
from avops.score import Candidate, ScoreTable

if TYPE_CHECKING:
    from avops.search.evaluator import Evaluator, Progress


@dataclass(frozen=True)
class Wanted:
    """One candidate: a recipe's terms, and the level whose instruction stands before queries."""

    terms: tuple[Term, ...] = ()
    told: str | None = None

    @property
    def name(self) -> str:
        """How it is shown."""
        return self.candidate().name

    def candidate(self, plan: int = 0, device: str = "cpu") -> Candidate:
        """It as an entry of a table."""
        av = tuple((term.name, term.text) for term in self.terms)
        return Candidate(av, self.told, plan, device)


@dataclass(frozen=True, eq=False)
class Measured:
    """table: all candidates that have scores. places: wanted candidate -> its place in the table.

    asked: how many were wanted; more than ``places`` after an interrupt. reused: how many were in
    the table before.
    """

    table: ScoreTable
    places: Mapping[int, int]
    asked: int
    reused: int

    @property
    def interrupted(self) -> bool:
        """Whether candidates are missing."""
        return self.asked > len(self.places)


def new_table(evaluator: Evaluator, *, about: bool = False) -> ScoreTable:
    """A table for the evaluator's items and plans, without candidates.

    about: with fingerprints of base and vectors, which are read for it.
    """
    told = [
        None if level is None else (level, evaluator.instructions[level])
        for level in evaluator.plans
    ]
    return ScoreTable.start(
        evaluator.items,
        list(evaluator.plans.values()),
        instructions=told,
        about=evaluator.about if about else None,
    )


def lacks(table: ScoreTable, wanted: Sequence[Wanted]) -> bool:
    """Whether any of ``wanted`` has no scores in ``table`` yet."""
    known = set(map(_key, table.entries))
    return any(_key(candidate.candidate()) not in known for candidate in wanted)


def measure(
    evaluator: Evaluator,
    wanted: Sequence[Wanted],
    table: ScoreTable,
    *,
    keep: Callable[[ScoreTable], None] | None = None,
    progress: Progress | None = None,
) -> Measured:
    """Measure what ``table`` lacks of ``wanted``, in order.

    ``keep(table)`` is called after each candidate that was measured, ``progress(done, total)``
    gets tokens over all of them. An interrupt ends it with the candidates that are finished,
    unless there is none: then it is raised.
    """
    known = {_key(entry): place for place, entry in reversed(list(enumerate(table.entries)))}
    keys = [_key(candidate.candidate()) for candidate in wanted]
    reused = sum(key in known for key in keys)
    missing = dict.fromkeys(key for key in keys if key not in known)
    first = {key: wanted[keys.index(key)] for key in missing}
    size = {key: evaluator.plans[first[key].told].record.tokens for key in missing}
    total, done = sum(size.values()), 0
    if progress is not None and total:
        progress(0, total)
    try:
        for key, candidate in first.items():
            inner = None if progress is None else _shifted(progress, done, size[key], total)
            scores = evaluator.evaluate(candidate.terms, inner, told=candidate.told)
            plan = _plan(table, candidate.told)
            table = table.append(candidate.candidate(plan, evaluator.device), scores)
            if keep is not None:
                keep(table)
            known[key] = len(table.entries) - 1
            done += size[key]
    except KeyboardInterrupt:
        if not any(key in known for key in keys):
            raise
    places = {number: known[key] for number, key in enumerate(keys) if key in known}
    return Measured(table, places, len(wanted), reused)


def _key(entry: Candidate) -> tuple[str | None, tuple[tuple[str, float], ...]]:
    """What decides a candidate's scores: λ in float32, without terms that add nothing.

    The order of two terms is free; that of three decides the last bit.
    """
    lams = [(name, parse_lam(text, f"{name}:{text}")) for name, text in entry.av]
    active = [(name, lam) for name, lam in lams if lam != 0]
    return entry.instruction, tuple(sorted(active) if len(active) < 3 else active)


def _plan(table: ScoreTable, told: str | None) -> int:
    return next(i for i, plan in enumerate(table.plans) if plan["instruction"] == told)


def _shifted(progress: Progress, before: int, size: int, total: int) -> Progress:
    """Progress of one candidate as a part of all: the scorer counts tokens in its own way."""

    def update(done: int, of: int) -> None:
        progress(before + size * done // max(of, 1), total)

    return update
