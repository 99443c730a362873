"""Optuna's samplers behind the interface of strategies: baselines, and for those who prefer them.

A wanted combination is an objective: maximise its margin (nsga2: its margin in every domain, and
the guards'). Several wanted combinations are a study each, in turn, those without a hit first;
every measured point counts in all of them.

What was told decides every answer. tpe and gp look at a study's trials only: each ask makes the
study anew from what was told, pending points as running trials, and seeds the sampler by how many
there are. cmaes and nsga2 work in generations, each a function of the one before: studies are
played from their seeds as far as results are known, so that neither the order of results nor the
number of workers matters. A study whose generations bring nothing new starts again with another
seed. random is one stream of draws.

λ are integers in steps. A point with too large a Σ|λ| has failed (tpe, gp), or has a value below
every margin that falls as the sum grows (cmaes, nsga2). So has one where something is not finite.
"""

from __future__ import annotations

import contextlib
import importlib
import re
import threading
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from avops.errors import MissingExtraError, RecipeError
from avops.search.strategies.grid import STOPS, coarse_order, found_all
from avops.search.strategies.strategy import Ask, Outlook, Problem, Told, asked_for_all

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from avops.search.board import Want
    from avops.search.space import Point

SAMPLERS = ("tpe", "cmaes", "nsga2", "gp", "random")
_GENERATIONAL = ("cmaes", "nsga2")
# What each needs beside Optuna itself.
_NEEDS = {"cmaes": ("cmaes",), "gp": ("scipy", "torch")}
# Where a note on an experimental class or argument says that it comes from: here, or there.
_WARNS = r"avops\.search\.strategies\.samplers$|optuna\.(samplers\.|_experimental$)"
_TRIES = 20  # asks that give nothing new before a study is left alone
_DULL = 10  # generations without a new point before a study starts again
_RESTARTS = 20

Values = Callable[["Point"], "list[float] | None"]


class OptunaStrategy:
    """sampler: one of SAMPLERS. stop: ``found`` ends it when every wanted combination was hit.

    Raises RecipeError for an unknown sampler or stop, MissingExtraError without its packages.
    """

    def __init__(self, problem: Problem, sampler: str = "tpe", *, stop: str = "all") -> None:
        if sampler not in SAMPLERS:
            raise RecipeError(
                f"optuna:{sampler}: no sampler has this name, expected one of {', '.join(SAMPLERS)}"
            )
        if stop not in STOPS:
            raise RecipeError(f"optuna:{sampler}: no stop {stop!r}, expected one of {STOPS}")
        self.name = f"optuna:{sampler}"
        for package in ("optuna", *_NEEDS.get(sampler, ())):
            _require(package, f"--strategy {self.name}")
        self._problem, self._sampler, self._stop = problem, sampler, stop
        self._order = coarse_order(problem.space).tolist()
        self._studies: dict[int, _Generations] = {}

    def ask(self, told: Told, count: int) -> Ask:
        """Points by Optuna; where it repeats itself, the grid's next, coarse to fine.

        No points and no why_done: every study awaits pending points of its generation.
        """
        if self._stop == "found" and found_all(self._problem, told):
            return Ask((), why_done="every wanted combination was found")
        taken = told.taken
        if len(taken) >= len(self._problem.space):
            return Ask((), why_done=asked_for_all(len(self._problem.space)))
        with _hush:
            found = self._sampled(told, taken, count)
        points = self._problem.space.points
        if not found and not told.pending:
            row = next(row for row in self._order if points[row] not in taken)
            found = [(points[row], f"{self.name} repeats itself: the grid's next")]
        return Ask(tuple(point for point, _ in found), tuple(why for _, why in found))

    def outlook(self, told: Told) -> Outlook | None:  # noqa: ARG002
        """None: nothing is known of its models."""
        return None

    def _sampled(self, told: Told, taken: set[Point], count: int) -> list[tuple[Point, str]]:
        if self._sampler == "random":
            return _random(self._problem, taken, count)
        made: list[tuple[Point, str]] = []
        for number in range(count):
            turn = len(told.points) + len(told.pending) + number
            for want in _in_turn(self._problem, told, turn):
                pending = (*told.pending, *(point for point, _ in made))
                now = replace(told, pending=pending)
                point = self._next(want, now, turn)
                if point is not None:
                    made.append((point, f"{self.name} for {self._problem.wants[want]}"))
                    break
        return made

    def _next(self, want: int, told: Told, turn: int) -> Point | None:
        if self._sampler not in _GENERATIONAL:
            return _history(self._problem, self._sampler, want, told, turn)
        if want not in self._studies:
            self._studies[want] = _Generations(self._problem, self._sampler, want)
        return self._studies[want].ask(told)


def _require(package: str, purpose: str) -> None:
    try:
        importlib.import_module(package)
    except ImportError:
        raise MissingExtraError(package, "search", purpose) from None


def _in_turn(problem: Problem, told: Told, turn: int) -> list[int]:
    """The wants in the order in which they are tried: without a hit first, ``turn`` decides who."""
    hit, _ = problem.board.judge(told.scores, problem.wants)
    reached = np.asarray(hit.any(axis=0))
    found: list[int] = []
    for some in (np.flatnonzero(~reached), np.flatnonzero(reached)):
        found += np.roll(some, -(turn % max(len(some), 1))).tolist()
    return found


def _random(problem: Problem, taken: set[Point], count: int) -> list[tuple[Point, str]]:
    """The next points of one stream of draws from the box; those out of bounds are left out."""
    import optuna

    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=problem.seed % 2**32))
    found: dict[Point, str] = {}
    for _ in range(_TRIES + 20 * (len(taken) + count)):
        if len(found) >= count:
            break
        point = _point(problem, study.ask(_distributions(problem)))
        if point in problem.space and point not in taken:
            found.setdefault(point, "optuna:random")
    return list(found.items())


def _history(problem: Problem, sampler: str, want: int, told: Told, turn: int) -> Point | None:
    """What a sampler asks that looks at the trials of the study alone."""
    import optuna

    distributions = _distributions(problem)
    seed = _seed(problem, want, turn)
    chosen = (
        optuna.samplers.TPESampler(seed=seed, constant_liar=True)
        if sampler == "tpe"
        else optuna.samplers.GPSampler(seed=seed)
    )
    study = optuna.create_study(direction="maximize", sampler=chosen)
    values = _values(problem, sampler, want, told)
    for place, point in enumerate((*told.points, *told.pending)):
        measured = place < len(told.points)
        study.add_trial(
            optuna.trial.create_trial(
                state=optuna.trial.TrialState.COMPLETE
                if measured
                else optuna.trial.TrialState.RUNNING,
                params=dict(zip(map(str, range(len(point))), point, strict=True)),
                distributions=distributions,
                values=values(point) if measured else None,
            )
        )
    taken = told.taken
    for _ in range(_TRIES):
        trial = study.ask(distributions)
        point = _point(problem, trial)
        if point in problem.space and point not in taken:
            return point
        # Measured: told again. Pending or out of bounds: failed. Either way the next draw differs.
        known = values(point) if point in problem.space else None
        failed = optuna.trial.TrialState.FAIL if known is None else None
        study.tell(trial, known, state=failed)
    return None


class _Generations:
    """One want's study by generations, played as far as results are known.

    Kept between calls to save time: told other results than those it was played with, it starts
    anew, so that it is the same as one that was never kept.
    """

    _restart: int
    _dull: int  # generations in a row without a new point
    _seen: set[Point]
    _study: Any
    _trials: list[Any]  # the present generation

    def __init__(self, problem: Problem, sampler: str, want: int) -> None:
        self._problem, self._sampler, self._want = problem, sampler, want
        self._begin(0)
        self._played: list[tuple[Point, list[float]]] = []

    def ask(self, told: Told) -> Point | None:
        """The next point of the present generation; None: all are pending, or it gave up."""
        values = _values(self._problem, self._sampler, self._want, told)
        if any(values(point) != known for point, known in self._played):
            self._begin(0)
            self._played = []
        taken = told.taken
        while self._restart < _RESTARTS:
            points = [_point(self._problem, trial) for trial in self._trials]
            results = [values(point) for point in points]
            if any(result is None for result in results):
                return next(
                    (p for p in points if p in self._problem.space and p not in taken), None
                )
            for trial, point, result in zip(self._trials, points, results, strict=True):
                self._study.tell(trial, result)
                self._played.append((point, result or []))
            self._dull = 0 if set(points) - self._seen else self._dull + 1
            self._seen.update(points)
            if self._dull >= _DULL:
                self._begin(self._restart + 1)
            else:
                self._next()
        return None

    def _begin(self, restart: int) -> None:
        self._restart, self._dull = restart, 0
        self._seen = set()
        self._study = _start(self._problem, self._sampler, self._want, restart)
        self._next()

    def _next(self) -> None:
        # CMA-ES learns its axes from a first trial, drawn at random.
        first = self._sampler == "cmaes" and not self._seen
        size = 1 if first else _size(self._problem, self._sampler)
        distributions = _distributions(self._problem)
        self._trials = [self._study.ask(distributions) for _ in range(size)]


def _start(problem: Problem, sampler: str, want: int, restart: int) -> Any:
    import optuna

    seed, size = _seed(problem, want, restart), _size(problem, sampler)
    if sampler == "cmaes":
        chosen: Any = optuna.samplers.CmaEsSampler(seed=seed, popsize=size, n_startup_trials=1)
        return optuna.create_study(direction="maximize", sampler=chosen)
    chosen = optuna.samplers.NSGAIISampler(seed=seed, population_size=size)
    objectives = len(problem.wants[want].levels) + len(problem.board.guards)
    return optuna.create_study(directions=["maximize"] * objectives, sampler=chosen)


def _size(problem: Problem, sampler: str) -> int:
    """Points of a generation: CMA-ES's usual number, and a small population for NSGA-II."""
    axes = len(problem.space.axes)
    return 4 + int(3 * np.log(axes)) if sampler == "cmaes" else 8 + 4 * axes


def _values(problem: Problem, sampler: str, want: int, told: Told) -> Values:
    """The objectives of a point: None where they are not known yet."""
    wanted = problem.wants[want]
    found = _objectives(problem, wanted, told.scores, split=sampler == "nsga2")
    rows, out = {point: row for row, point in enumerate(told.points)}, set(told.out)

    def of(point: Point) -> list[float] | None:
        if point in rows:
            return [float(value) for value in found[rows[point]]]
        if point in problem.space and point not in out:
            return None
        size = float(sum(abs(p) * a.step for p, a in zip(point, problem.space.axes, strict=True)))
        return [-2 - size] * found.shape[1]

    return of


def _objectives(
    problem: Problem, want: Want, scores: NDArray[np.float32], *, split: bool
) -> NDArray[np.float64]:
    """[point, objective]: the margin; with ``split`` of each domain, then of each guard."""
    board = problem.board
    if not split:
        return board.judge(scores, [want])[1]
    from avops.search.board import Board, Want

    alone = Board(board.main)
    floors = dict(want.floors)
    parts = [
        Want((pair,), ((pair[0], floors[pair[0]]),) if pair[0] in floors else ())
        for pair in want.levels
    ]
    margins = alone.judge(scores[:, board.spans[0]], parts)[1]
    above = board.guard_shares(scores) - np.array([float(guard.floor) for guard in board.guards])
    return np.concatenate([margins, above], axis=1)


def _distributions(problem: Problem) -> dict[str, Any]:
    """An integer per axis, called by its number."""
    from optuna.distributions import IntDistribution

    return {
        str(place): IntDistribution(axis.low, axis.high)
        for place, axis in enumerate(problem.space.axes)
    }


def _point(problem: Problem, trial: Any) -> Point:
    return tuple(int(trial.params[str(place)]) for place in range(len(problem.space.axes)))


def _seed(problem: Problem, want: int, turn: int) -> int:
    state = np.random.SeedSequence([problem.seed, want, turn]).generate_state(1)
    return int(state[0])


class _Hush:
    """Optuna without its log lines, and without its notes on what is experimental that we use.

    Both are settings of the process: the first thread that is inside makes them, the last one takes
    them back. The filter of warnings asks which thread it is, so that others warn as they would;
    ``warnings.catch_warnings`` would change the filters of all of them, and lose their changes.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside: list[int] = []  # threads
        self._verbosity = 0
        self._filter: Any = None

    def __enter__(self) -> None:
        import optuna

        with self._lock:
            if not self._inside:
                kind = optuna.exceptions.ExperimentalWarning
                self._verbosity = optuna.logging.get_verbosity()
                optuna.logging.set_verbosity(optuna.logging.ERROR)
                self._filter = ("ignore", None, kind, self, 0)
                warnings.filters.insert(0, self._filter)  # type: ignore[attr-defined]
            self._inside.append(threading.get_ident())

    def __exit__(self, *_: object) -> None:
        import optuna

        with self._lock:
            self._inside.remove(threading.get_ident())
            if not self._inside:
                optuna.logging.set_verbosity(self._verbosity)
                # Somebody else may have put other filters in their place meanwhile.
                with contextlib.suppress(ValueError):
                    warnings.filters.remove(self._filter)  # type: ignore[attr-defined]

    def match(self, module: str) -> bool:
        """As a filter's expression for modules: whether a note that comes from there is ours."""
        return threading.get_ident() in self._inside and re.match(_WARNS, module) is not None


_hush = _Hush()
