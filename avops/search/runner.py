"""The loop of a search: ask, measure, tell, until there is nothing left to ask.

Batches overlap: while one is measured the next is planned, told of every batch before that one,
with its points pending. What is asked so depends on nothing but the results: neither on how many
workers there are nor on who is faster. A run that was killed goes the same way to its end.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from avops.errors import NonFiniteError
from avops.score.wording import counted
from avops.search.budget import Budget, Clock, Progress
from avops.search.fanout.crew import Failed, Lost, Woken
from avops.search.points import Job
from avops.search.racing import Heat, incumbent, race_of
from avops.search.store import Batch, Result
from avops.search.strategies.strategy import Ask, Told
from avops.search.study import SEARCH, sweep_points

if TYPE_CHECKING:
    from avops.search.budget import Watch
    from avops.search.fanout.crew import Crew
    from avops.search.points import Outcome
    from avops.search.space import Point
    from avops.search.store import Store
    from avops.search.strategies.strategy import Outlook, Strategy

TIMED = ("timed: the first",)


class Search:
    """One command's part of a search.

    store: open for writing. clock: where the time went. why: why it ended. finished: by the
    strategy itself. outlook: the latest that it gave.
    """

    def __init__(
        self, store: Store, strategy: Strategy, crew: Crew, budget: Budget, watch: Watch
    ) -> None:
        self.store = store
        self.strategy = strategy
        self.crew = crew
        self.budget = budget
        self.watch = watch
        self.clock = Clock()
        self.why = ""
        self.finished = False
        self.outlook: Outlook | None = None
        self._study = store.study
        self._race = race_of(store.study)
        self._broken = set(store.broken())
        self._out = set(store.outs()) | self._broken  # has no scores, and is not asked for again
        self._rows: dict[Point, Result] = {}
        self._before: list[Result] = []
        self._open: set[Point] = set()
        self._hits = np.zeros(len(store.study.wants), np.bool_)
        self._said = ""
        for result in store.results():
            if result.point in self._study.space:
                self._known(result)
                if result.number <= store.since:
                    self._before.append(result)

    @property
    def measured(self) -> int:
        """Points of the space that have scores."""
        return len(self._rows)

    @property
    def looked(self) -> int:
        """Points that were measured, put out of a race, or not finite: what the budget counts."""
        return len(self._rows.keys() | {point for point in self._out if point in self._study.space})

    @property
    def out(self) -> int:
        """Points that were put out of the race."""
        return len(self._out - self._broken)

    @property
    def found(self) -> int:
        """Wanted combinations that a measured point hits."""
        return int(self._hits.sum())

    def begin(self) -> float:
        """Take up what was asked for earlier, or measure a first point: seconds of one evaluation.

        The first point, that nearest to λ = 0, is part of the search like any other.
        """
        batches = self.store.asked()
        if not batches and not self._rows:
            first = self._study.space.nearest((0.0,) * len(self._study.space.axes))
            batches = [self._asked(Batch((first,), TIMED))]
            self._until(lambda: self._whole(batches))
        seconds = [result.seconds for result in self._rows.values()]
        return float(np.median(seconds)) if seconds else 0.0

    def run(self) -> str:
        """Search to the end. Returns why it ended: the strategy's reason, or the budget."""
        try:
            batches = self.store.asked()
            for batch in batches:
                self._measure(batch)
            if (first := self._first(batches)) is not None:
                batches.append(self._asked(first))
            self._search(batches)
        finally:
            self.clock.wall = time.perf_counter() - self.clock.begun
        return self.why

    def told(self) -> Told:
        """Everything measured of the space, in the order in which strategies are told of it."""
        return self.store.told()

    def _search(self, batches: list[Batch]) -> None:
        last: Batch | None = batches[-1] if batches else None
        while True:
            done = [batch for batch in batches if batch is not last]
            self._until(lambda done=done: self._whole(done))  # type: ignore[misc]
            if self._spent():
                break
            told = self._told(done, () if last is None else last.points)
            ask = self._plan(told)
            if ask.points:
                last = self._asked(
                    Batch(ask.points, ask.reasons, ask.note, self._incumbent(ask, told))
                )
                batches.append(last)
            elif last is not None:
                last = None  # what is pending may change the answer
            else:
                self.finished = True
                self.why = ask.why_done or f"{self.strategy.name} asks for no more points"
                return
        # The budget is spent: what workers have in hand is still kept.
        self.crew.withdraw()
        while self.crew.running:
            self._take(self.crew.events.get())
        while not self.crew.events.empty():
            self._take(self.crew.events.get())

    def _plan(self, told: Told) -> Ask:
        count = self._study.batch
        if self.budget.evaluations is not None:
            spent = self.looked + sum(not self._known_of(point) for point in told.pending)
            count = min(count, self.budget.evaluations - spent)
        if count < 1:
            return Ask((), why_done=self._budget_text())
        future: Future[Ask] = Future()
        # No executor: an interrupt must not wait for a plan.
        thread = threading.Thread(target=self._think, args=(future, told, count), daemon=True)
        thread.start()
        self._until(future.done, planning=True)
        return self._checked(future, told)

    def _checked(self, future: Future[Ask], told: Told) -> Ask:
        ask = future.result()
        self.outlook = ask.outlook or self.outlook
        if ask.note and ask.note != self._said:
            self._said = ask.note
            self.store.note("strategy", text=ask.note, evaluations=self.measured)
            self.watch.note(ask.note)
        taken = told.taken
        doubled = [point for point in ask.points if point in taken]
        outside = [point for point in ask.points if point not in self._study.space]
        assert not doubled, f"{self.strategy.name} asked again for {doubled[0]}"
        assert not outside, f"{self.strategy.name} asked for {outside[0]}, which is outside"
        return ask

    def _think(self, future: Future[Ask], told: Told, count: int) -> None:
        begin = time.perf_counter()
        try:
            ask = self.strategy.ask(told, count)
            self.clock.planner += time.perf_counter() - begin
            future.set_result(ask)
        except BaseException as error:
            future.set_exception(error)
        self.crew.wake()

    def _first(self, batches: list[Batch]) -> Batch | None:
        """The coarse sweeps, before a strategy is asked for anything."""
        if "sweeps" not in self._study.baselines or any(b.reasons[:1] != TIMED for b in batches):
            return None
        points = [p for p in sweep_points(self._study.space) if p not in self._rows]
        if self.budget.evaluations is not None:
            points = points[: max(0, self.budget.evaluations - self.looked)]
        if not points:
            return None
        return Batch(tuple(points), ("baseline: sweeps",) * len(points))

    def _asked(self, batch: Batch) -> Batch:
        kept = self.store.ask(batch)
        self._measure(kept)
        return kept

    def _measure(self, batch: Batch) -> None:
        """Queue what has no scores yet."""
        reasons = batch.reasons or ("",) * len(batch.points)
        heat = None
        if self._race is not None and batch.against is not None:
            heat = Heat(self._race, batch.against, self._rows[batch.against].scores)
        jobs = [
            Job(point, SEARCH, self._study.space.terms(point), reason=reason, heat=heat)
            for point, reason in zip(batch.points, reasons, strict=True)
            if not self._known_of(point) and point not in self._open
        ]
        self._open |= {job.point for job in jobs}
        self.crew.submit(jobs)

    def _whole(self, batches: list[Batch]) -> bool:
        return all(self._known_of(point) for batch in batches for point in batch.points)

    def _known_of(self, point: Point) -> bool:
        """Whether ``point`` is measured, or never will be."""
        return point in self._rows or point in self._out

    def _incumbent(self, ask: Ask, told: Told) -> Point | None:
        """Whom the points of ``ask`` race."""
        if self._race is None or ask.whole:
            return None
        return incumbent(told, self._study)

    def _told(self, batches: list[Batch], pending: tuple[Point, ...]) -> Told:
        """Results of earlier studies as they arrived, then batch by batch."""
        results = {result.point: result for result in self._before}
        for batch in batches:
            for point in batch.points:
                if point in self._rows:
                    results.setdefault(point, self._rows[point])
        asked = dict.fromkeys(point for batch in batches for point in batch.points)
        out = tuple(point for point in asked if point in self._out and point not in results)
        if not results:
            return replace(Told.nothing(self._study.board), pending=pending, out=out)
        scores = np.stack([result.scores for result in results.values()])
        return Told(tuple(results), scores, pending, out)

    def _until(self, ready: Callable[[], bool], *, planning: bool = False) -> None:
        """Keep what arrives until ``ready()``, or until the budget is spent."""
        while not ready():
            if not planning and self._spent():
                return
            begin = time.perf_counter()
            idle = self.crew.running == 0
            event = self._next_event()
            if planning and idle:
                self.clock.waited += time.perf_counter() - begin
            self._take(event)

    def _next_event(self) -> Outcome | Lost | Failed | Woken:
        left = self._hours_left()
        if left is None:
            return self.crew.events.get()
        try:
            return self.crew.events.get(timeout=max(left, 0.01))
        except queue.Empty:  # the time is over
            return Woken()

    def _take(self, event: Outcome | Lost | Failed | Woken) -> None:
        if isinstance(event, Failed):
            raise event.error
        if isinstance(event, Lost):
            point = None if event.job is None else list(event.job.point)
            self.store.note("lost worker", worker=event.worker, reason=event.reason, point=point)
            self.watch.note(f"worker {event.worker} was lost ({event.reason}) and is replaced")
        elif not isinstance(event, Woken):
            self._keep(event)

    def _keep(self, outcome: Outcome) -> None:
        job = outcome.job
        begin = time.perf_counter()
        if not self.clock.evaluations:
            self.clock.loading = max(0.0, begin - self.clock.begun - outcome.seconds)
        if outcome.broken:
            self._put_aside(outcome)
        elif outcome.out is not None:
            self.store.put_out(job.point, outcome.out, outcome.seconds, outcome.worker)
            self._out.add(job.point)
        else:
            self._known(
                self.store.add(
                    Result(
                        job.point,
                        job.split,
                        outcome.scores,
                        outcome.seconds,
                        outcome.worker,
                        job.reason,
                    )
                )
            )
        self.clock.keeping += time.perf_counter() - begin
        self.clock.setting += outcome.setting
        self.clock.scoring += outcome.scoring
        self.clock.evaluations += 1
        self._open.discard(job.point)
        spent = self.clock.setting + self.clock.scoring
        pace = spent / self.clock.evaluations / self.crew.size
        wanted = len(self._hits)
        self.watch.progress(
            Progress(self.looked, self.budget.evaluations, self.found, wanted, pace)
        )

    def _put_aside(self, outcome: Outcome) -> None:
        """Go on without a point where something is not finite; where it is the first, do not.

        Raises NonFiniteError then: that point is the nearest to the base.
        """
        point, name = outcome.job.point, self._study.space.name(outcome.job.point)
        if not self._rows:
            raise NonFiniteError(
                f"the first point, {name}: {outcome.broken} (nothing was measured; a search goes "
                "on without such points once one was)"
            )
        self.store.put_aside(point, outcome.broken, outcome.seconds, outcome.worker)
        self._broken.add(point)
        self._out.add(point)
        self.watch.note(f"{name} is left out, as no hit can be there: {outcome.broken}")

    def _known(self, result: Result) -> None:
        self._rows[result.point] = result
        hit, _ = self._study.board.judge(result.scores[None], self._study.wants)
        self._hits |= hit[0]

    def _spent(self) -> bool:
        """Whether the budget is spent; then says so in ``why``."""
        left = self._hours_left()
        most = self.budget.evaluations
        if (left is None or left > 0) and (most is None or self.looked < most):
            return False
        self.why = self._budget_text()
        return True

    def _hours_left(self) -> float | None:
        """Seconds of ``--hours`` that are left."""
        if self.budget.hours is None:
            return None
        return self.clock.begun + 3600 * self.budget.hours - time.perf_counter()

    def _budget_text(self) -> str:
        if (left := self._hours_left()) is not None and left <= 0:
            hours = self.budget.hours or 0.0
            return f"the budget of {hours:g} {'hour' if hours == 1 else 'hours'} is spent"
        return f"the budget of {counted(self.budget.evaluations or 0, 'evaluation')} is spent"
