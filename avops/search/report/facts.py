"""What a run holds, as the report reads it. Everything shown is computed from this alone."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from avops.recipe import exact_text
from avops.score.wording import counted
from avops.search.confirm import WINNER
from avops.search.evaluator import rules_text
from avops.search.store import Store
from avops.search.strategies.strategy import Told
from avops.search.study import BASELINE, HOLDOUT
from avops.search.verdicts import HoldOut, findings

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from avops.search.identity import Identity
    from avops.search.report.model import Model
    from avops.search.space import Point
    from avops.search.store import Note, Result
    from avops.search.strategies.strategy import Strategy
    from avops.search.study import Study
    from avops.search.verdicts import Finding

COMMAND = "command"
"""The kind of note that says which command searched (``words``) and with which ``version``."""
ENDED = "ended"
"""The kind of note that says why a search ended (``why``), and whether every plausible point was
measured (``exhausted``)."""


@dataclass(frozen=True)
class Saved:
    """What became of a winner's λ when it was rounded to what is saved.

    effective: λ by alignment vector as it arrived, None where it cannot be told. unchanged: share
    of elements that the update left as they are in the base; None where no term touches any.
    """

    effective: Mapping[str, float | None]
    unchanged: float | None


@dataclass(frozen=True, eq=False)
class Facts:
    """One run.

    told: measured points in the order they arrived. arrived: seconds of work until each, pauses
    between commands left out. baselines: rows of scores by name. model: fitted to all that was
    measured; None where there is too little, or nothing left to infer. ended: why the last search
    ended, None while it runs or after a kill. command: what makes the run again; rebuilt: from the
    study, since the run does not say.
    """

    name: str
    study: Study
    identity: Identity
    told: Told
    findings: tuple[Finding, ...]
    arrived: tuple[float, ...] = ()
    baselines: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    saved: Mapping[Point, Saved] = field(default_factory=dict)
    model: Model | None = None
    command: str = ""
    rebuilt: bool = False
    version: str = ""
    ended: str | None = None
    notes: tuple[str, ...] = ()


def facts_of(store: Store, *, model: bool = True, strategy: Strategy | None = None) -> Facts:
    """What ``store`` holds. model: also fit one, which takes a few seconds.

    strategy: the one that has just searched, which may hold that model already. Raises DataError
    for a damaged run.
    """
    from avops.search.report.model import fitted

    study, told = store.study, store.told()
    found = fitted(study.problem, told, strategy) if model else None
    results = [result for result in store.results() if result.point in study.space]
    held = None
    if study.holdout is not None:
        rows = {result.point: result.scores for result in store.results(HOLDOUT)}
        held = HoldOut(study.holdout, rows)
    notes = store.notes()
    ended = last_end(notes)
    command, rebuilt = _command(store, notes)
    return Facts(
        name=str(store.directory),
        study=study,
        identity=store.identity,
        told=_arrived(study, results),
        findings=findings(
            study.problem,
            told,
            # Chances of a model that does not fit are no chances.
            outlook=found.outlook if found is not None and found.fit.trusted else None,
            holdout=held,
            exhausted=bool(ended.get("exhausted")),
        ),
        arrived=busy(results),
        baselines={
            split.removeprefix(BASELINE): store.results(split)[0].scores
            for split in store.splits()
            if split.startswith(BASELINE)
        },
        saved={
            tuple(note.value["point"]): Saved(note.value["effective"], note.value["unchanged"])
            for note in notes
            if note.kind == WINNER
        },
        model=found,
        command=command,
        rebuilt=rebuilt,
        version=str(_last(notes, COMMAND).get("version", "")),
        ended=ended.get("why"),
        notes=(
            *dict.fromkeys(n.value["text"] for n in notes if n.kind == "strategy"),
            *_broken(store),
        ),
    )


def _broken(store: Store) -> list[str]:
    """What to say of points at which something is not finite."""
    space = store.study.space
    some = [(space.name(p), why) for p, why in store.broken().items() if p in space]
    if not some:
        return []
    first, why = some[0]
    return [f"{counted(len(some), 'point')} left out, the first {first}: {why}"]


def _arrived(study: Study, results: Sequence[Result]) -> Told:
    """The points as they arrived, which is how a report shows them."""
    if not results:
        return Told.nothing(study.board)
    return Told(tuple(r.point for r in results), np.stack([r.scores for r in results]))


def last_end(notes: Sequence[Note]) -> Mapping[str, Any]:
    """How the latest command ended; nothing where it did not say, or has only begun."""
    for note in reversed(notes):
        if note.kind == ENDED:
            return note.value
        if note.kind == COMMAND:
            break
    return {}


def busy(results: Sequence[Result]) -> tuple[float, ...]:
    """Seconds in which some worker was at work, until each of ``results`` arrived."""
    found, total, until = [], 0.0, float("-inf")
    for result in results:
        begin = max(result.added - result.seconds, until)
        total += max(result.added - begin, 0.0)
        until = max(until, result.added)
        found.append(total)
    return tuple(found)


def rebuilt_command(study: Study, identity: Identity, directory: str) -> str:
    """A command that makes the same search, as far as the study tells."""
    space = study.space
    terms = {axis.name: str(axis) for axis in space.axes} | {t.name: str(t) for t in space.fixed}
    words = ["avops", "search"]
    words += [identity.shown["base"]] if "base" in identity.shown else []
    words += ["--av", *(terms[name] for name in (space.order or tuple(terms)))]
    words += shlex.split(rules_text(study.where, study.skip))
    words += ["--max-sum", exact_text(space.bound)] if space.bound is not None else []
    part = study.board.main
    # Counted first: many levels in many domains are not listed.
    everything = (
        len(study.wants) == len(part.levels) ** len(part.domains)
        and study.wants == study.board.combinations()
    )
    words += ["--want", *(["all"] if everything else map(str, study.wants))]
    if len(study.wants) == 1:
        words += ["--race" if study.race else "--no-race"]
    words += ["--strategy", study.strategy, "--seed", str(study.seed), "--run", directory]
    return shlex.join(words)


def _command(store: Store, notes: Sequence[Note]) -> tuple[str, bool]:
    words = _last(notes, COMMAND).get("words")
    if words:
        return shlex.join(words), False
    return rebuilt_command(store.study, store.identity, str(store.directory)), True


def _last(notes: Sequence[Note], kind: str) -> dict[str, Any]:
    """What the last note of ``kind`` says; nothing where there is none."""
    return next((note.value for note in reversed(notes) if note.kind == kind), {})
