"""A world without models: scores are smooth functions of the point, computed in no time.

Used in worker processes too, so everything here can be pickled.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from avops.errors import NonFiniteError
from avops.recipe import Source, Sources
from avops.search.board import Board, Part
from avops.search.identity import Identity
from avops.search.points import SETTING, Job, Outcome, Place
from avops.search.space import Point, Space, parse_space
from avops.search.strategies.strategy import Ask, Outlook, Problem, Told
from avops.search.study import Study

LEVELS = ("exp", "gen", "avd")
NAMES = ("med", "fin")
ITEMS = 6
IDENTITY = Identity({"base": "a" * 64, "dtype": "f32"}, {"base": "base.safetensors"})
SOURCES = Sources({name: Source(name, f"{name}.safetensors") for name in (*NAMES, "leg")})


def space(*specs: str, bound: str | None = None) -> Space:
    return parse_space(specs or ("med:-1:1:.25", "fin:-1:1:.25"), SOURCES, bound=bound)


def board(items: int = ITEMS) -> Board:
    of_item = tuple(place for place in range(len(NAMES)) for _ in range(items))
    return Board(Part(LEVELS, NAMES, of_item))


def study(*specs: str, held: bool = True, **changes: Any) -> Study:
    own = board()
    given = {
        "space": space(*specs),
        "board": own,
        "wants": own.combinations(),
        "holdout": board(4) if held else None,
        "strategy": "lexicographic",
        "batch": 3,
    }
    return Study(**{**given, **changes})


def scores(point: Point, outputs: int, told: str | None = None) -> np.ndarray:
    """Level k of domain d wins where λ_d is near (1 − k); told levels are a little likelier."""
    per = outputs // len(NAMES) // len(LEVELS)
    rows = np.empty((len(NAMES), per, len(LEVELS)))
    for d in range(len(NAMES)):
        for item in range(per):
            for k, level in enumerate(LEVELS):
                at = point[d] / 4 + 0.1 * (item - per / 2) / per
                rows[d, item, k] = -abs(at - (1 - k)) - 2 + (0.5 if told == level else 0)
    return rows.reshape(-1).astype(np.float32)


@dataclass(frozen=True)
class Maker:
    """Makes measurers. pause: seconds for a job. die: points whose first job kills the process,
    remembered in ``marks``. hang: the same for standing still. fail: points that raise. broken:
    points where something is not finite."""

    outputs: dict[str, int] = field(default_factory=lambda: {"search": 36, "holdout": 24})
    pause: float = 0.0
    die: tuple[Point, ...] = ()
    always: bool = False
    hang: tuple[Point, ...] = ()
    fail: tuple[Point, ...] = ()
    broken: tuple[Point, ...] = ()
    marks: str = ""
    digests: tuple[str, ...] = ("d",)

    def make(self, place: Place) -> Measurer:
        return Measurer(self, place)


class Measurer:
    def __init__(self, maker: Maker, place: Place) -> None:
        self._maker, self._place = maker, place
        self.digest = maker.digests[place.number % len(maker.digests)]
        self.seen: list[Job] = []

    def load(self) -> None: ...

    def evaluate(self, job: Job, stopped: Callable[[], bool] | None = None) -> Outcome:
        maker = self._maker
        self.seen.append(job)
        if job.point in (*maker.die, *maker.hang):
            mark = Path(maker.marks) / "-".join(map(str, job.point))
            if maker.always or not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL if job.point in maker.die else signal.SIGSTOP)
        if job.point in maker.broken:
            name = str(self._place.number)
            return Outcome(job, np.empty(0, np.float32), 0.0, 0.0, name, broken="a weight is NaN")
        if job.point in maker.fail:
            raise NonFiniteError(f"weights are NaN at {job.point}")
        end = time.monotonic() + maker.pause
        while time.monotonic() < end:
            if stopped is not None and stopped():
                raise KeyboardInterrupt
            time.sleep(0.001)
        outputs = maker.outputs.get(job.split, maker.outputs["search"])
        found = np.empty(0, np.float32)
        if job.split != SETTING:
            found = scores(job.point, outputs, job.told)
        effective = dict.fromkeys(NAMES, 0.5) if job.detailed else None
        return Outcome(job, found, 0.0, maker.pause, str(self._place.number), 0.25, effective)


class Lexicographic:
    """Every point in order; after each batch a number is drawn from what it was told."""

    name = "lexicographic"

    def __init__(self, problem: Problem, *, most: int | None = None, pause: float = 0.0) -> None:
        self._points, self._most, self._pause = problem.space.points, most, pause
        self.asked: list[tuple[Told, int]] = []

    def ask(self, told: Told, count: int) -> Ask:
        self.asked.append((told, count))
        time.sleep(self._pause)
        known = told.taken
        if self._most is not None:
            count = max(0, min(count, self._most - len(known)))
        left = [point for point in self._points if point not in known]
        # Whatever it was told decides: another order of results would show in what is asked.
        start = int(abs(told.scores.astype(np.float64) @ np.arange(told.scores.shape[1])).sum())
        turned = [left[(start + 7 * k) % len(left)] for k in range(count)] if left else []
        points = tuple(dict.fromkeys(turned))
        return Ask(points, ("next",) * len(points), why_done="" if points else "all were asked")

    def outlook(self, told: Told) -> Outlook | None:
        return None


class Silent:
    """A watch that remembers."""

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.notes: list[str] = []

    def progress(self, now: Any) -> None:
        self.seen.append(now)

    def note(self, text: str) -> None:
        self.notes.append(text)
