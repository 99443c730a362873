"""A raced search without models: rows of a synthetic truth, measured item by item.

As a program: search to the end in a directory, with a line for every point that was looked at.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from avops.search.budget import Budget
from avops.search.fanout.crew import Crew
from avops.search.fanout.local import LocalWorker
from avops.search.points import Job, Outcome, Place
from avops.search.runner import Search
from avops.search.store import Store
from avops.search.strategies.registry import make_strategy
from avops.search.study import Study
from search.synthetic import IDENTITY, Silent
from search.truths import Truth, truth


@cache
def world(guard: bool = True) -> Truth:
    return truth(2, seed=3, items=60, steps=4, guard=guard)


def study(want: int = 0, *, race: bool = True, strategy: str = "grid", **changes: Any) -> Study:
    """81 points, 120 items and ten pairs; one of the reachable combinations wanted."""
    problem = world().problem
    wants = [one for one in problem.wants if one in world().reachable]
    given = {"strategy": strategy, "batch": 4, "race": race, **changes}
    return Study(problem.space, problem.board, (wants[want],), **given)


class Measurer:
    """items: how many were measured, in all jobs."""

    digest = "d"

    def __init__(self, number: int = 0, pause: float = 0.0) -> None:
        self._number, self._pause = number, pause
        self.items = 0

    def load(self) -> None: ...

    def evaluate(self, job: Job, stopped: Callable[[], bool] | None = None) -> Outcome:
        time.sleep(self._pause * (1 + hash(job.point) % 3))
        row, out = world().evaluate(job.point), None
        everything = world().problem.board

        def some(items: Any) -> Any:
            assert (np.diff(items) > 0).all()
            self.items += len(items)
            assert job.heat is not None
            return row[job.heat.race.columns(items)]

        if job.heat is None:
            parts = [everything.main, *(guard.part for guard in everything.guards)]
            self.items += sum(len(part.of_item) for part in parts)
        else:
            row, out = job.heat.run(job.point, some)
        return Outcome(job, row, 0.0, self._pause, str(self._number), out=out)


def searched(
    directory: Path,
    own: Study,
    *,
    workers: int = 1,
    budget: int | None = None,
    pause: float = 0.0,
    think: float = 0.0,
    watch: Any = None,
) -> tuple[Search, int]:
    """(the search, items measured). pause, think: seconds of a measurement, of an ask."""
    measurers = [Measurer(number, pause) for number in range(workers)]
    crew = Crew([LocalWorker(m, Place(n)) for n, m in enumerate(measurers)], "d")
    strategy = make_strategy(own.strategy, own.problem)
    ask = strategy.ask

    def slowly(*told: Any) -> Any:
        time.sleep(think)
        return ask(*told)

    strategy.ask = slowly  # type: ignore[method-assign]
    with Store.open(directory, own, IDENTITY) as store, crew:
        search = Search(store, strategy, crew, Budget(budget), watch or Silent())
        search.run()
    return search, sum(measurer.items for measurer in measurers)


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


class Lines(Silent):
    """A line for every point."""

    def progress(self, now: Any) -> None:
        say(f"{now.measured}")


if __name__ == "__main__":
    say("ready")
    ended, measured = searched(Path(sys.argv[1]), study(), workers=2, pause=0.002, watch=Lines())
    say(f"end {ended.clock.evaluations}")
