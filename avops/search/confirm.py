"""After the search: winners once on held-out items, as they will be saved; and baselines.

Each wanted combination has one pick, and only that is measured on held-out items: picking among
several there would be searching on them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from avops.errors import NonFiniteError
from avops.search.fanout.crew import Failed, Lost, Woken
from avops.search.points import SETTING, Job, baseline_jobs
from avops.search.store import Result
from avops.search.study import HOLDOUT

if TYPE_CHECKING:
    from avops.search.budget import Watch
    from avops.search.fanout.crew import Crew
    from avops.search.points import Outcome
    from avops.search.space import Point
    from avops.search.store import Store

WINNER = "winner"
"""The kind of note that says what rounding left of a winner's λ."""


def after_jobs(store: Store, picked: Sequence[Point], levels: Sequence[str]) -> list[Job]:
    """What is missing of winners and baselines. levels: those that have an instruction."""
    study = store.study
    held = store.points(HOLDOUT)
    seen = {tuple(note.value["point"]) for note in store.notes(WINNER)}
    jobs = []
    for point in dict.fromkeys(picked):
        terms = study.space.terms(point)
        if study.holdout is not None and point not in held:
            jobs.append(Job(point, HOLDOUT, terms, reason="winner", detailed=point not in seen))
        elif point not in seen:
            jobs.append(Job(point, SETTING, terms, reason="winner", detailed=True))
    zero = (0,) * len(study.space.axes)
    known = set(store.splits())
    baselines = baseline_jobs(study.baselines, levels, zero)
    if zero in study.space and not study.space.fixed and zero in store.points():
        # The origin is the base: it has been measured.
        baselines = [job for job in baselines if job.told is not None]
    return jobs + [job for job in baselines if job.split not in known]


def measure_after(store: Store, jobs: Sequence[Job], crew: Crew, watch: Watch) -> None:
    """Measure ``jobs`` and keep what they gave."""
    crew.submit(jobs)
    left = len(jobs)
    while left:
        event = crew.events.get()
        if isinstance(event, Failed):
            raise event.error
        if isinstance(event, Lost):
            watch.note(f"worker {event.worker} was lost ({event.reason}) and is replaced")
        elif not isinstance(event, Woken):
            _keep(store, event, watch)
            left -= 1


def _keep(store: Store, outcome: Outcome, watch: Watch) -> None:
    job = outcome.job
    if outcome.broken:
        where = f"{job.split} at {store.study.space.name(job.point)}"
        if job.split != HOLDOUT:
            raise NonFiniteError(f"{where}: {outcome.broken}")
        watch.note(f"{where} confirms nothing: {outcome.broken}")
        return
    if outcome.effective is not None:
        # Before the scores: a kill between the two measures again, and loses nothing.
        store.note(
            WINNER,
            point=list(job.point),
            effective=dict(outcome.effective),
            unchanged=outcome.unchanged,
        )
    if job.split != SETTING:
        store.add(
            Result(
                job.point, job.split, outcome.scores, outcome.seconds, outcome.worker, job.reason
            )
        )
