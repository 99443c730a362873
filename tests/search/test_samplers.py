"""Optuna's samplers behind ask and tell: pure, in bounds, quiet."""

from __future__ import annotations

import sys
import threading
import warnings
from fractions import Fraction

import numpy as np
import pytest

from avops.errors import MissingExtraError, RecipeError
from avops.search.board import parse_want
from avops.search.space import Point, Space
from avops.search.strategies.samplers import SAMPLERS, OptunaStrategy, _hush
from avops.search.strategies.strategy import Problem, Told
from search.truths import Truth, play, space_of, truth

optuna = pytest.importorskip("optuna")
pytest.importorskip("cmaes")
pytest.importorskip("scipy")

FAST = tuple(name for name in SAMPLERS if name != "gp")


@pytest.fixture(scope="module")
def square() -> Truth:
    return truth(2, steps=5)


def of_one(study: Truth, text: str) -> Truth:
    problem = study.problem
    wants = (parse_want(text, problem.board.main),)
    return Truth(Problem(problem.space, problem.board, wants, problem.seed), study.formula)


@pytest.mark.parametrize("name", FAST)
def test_points_are_new_and_of_the_space(name: str, square: Truth) -> None:
    points = play(square, OptunaStrategy(square.problem, name), 30)
    assert len(points) == len(set(points)) == 30
    assert set(points) <= set(square.problem.space.points)
    assert len(square.found(points)) >= 4


def test_the_gaussian_process_too(square: Truth) -> None:
    """Past its ten random points; slow, so only one more."""
    study = of_one(square, "med=exp,fin=avd")
    points = play(study, OptunaStrategy(study.problem, "gp"), 10, workers=5)
    assert len(points) == len(set(points)) == 10
    now = study.told(points)
    asked = OptunaStrategy(study.problem, "gp").ask(now, 1)
    assert asked == OptunaStrategy(study.problem, "gp").ask(now, 1)
    assert asked.points[0] not in points


def test_random_draws_do_not_depend_on_results(square: Truth) -> None:
    points = play(square, OptunaStrategy(square.problem, "random"), 30, workers=4)
    blank = Told(points[:20], np.zeros((20, square.problem.board.outputs), np.float32))
    assert OptunaStrategy(square.problem, "random").ask(blank, 5).points == points[20:25]


@pytest.mark.parametrize("name", FAST)
def test_answers_are_a_function_of_what_was_told(name: str, square: Truth) -> None:
    lived = OptunaStrategy(square.problem, name)
    points = play(square, lived, 24, workers=3)
    for count in (0, 7, 22):
        now = square.told(points[:count], points[count : count + 2])
        asked = lived.ask(now, 3)
        assert asked == OptunaStrategy(square.problem, name).ask(now, 3)
        assert not set(asked.points) & {*now.points, *now.pending}
        assert len(asked.reasons) == len(asked.points)


@pytest.mark.parametrize("name", ["cmaes", "nsga2"])
def test_generations_do_not_depend_on_the_order_of_results(name: str) -> None:
    """Nor on the number of workers, as long as they do not outrun a generation."""
    study = of_one(truth(2, steps=10), "med=exp,fin=avd")
    points = play(study, OptunaStrategy(study.problem, name), 30)
    now = study.told(points[::-1])
    again = study.told(points)
    ask = OptunaStrategy(study.problem, name).ask
    assert ask(now, 2).points[:1] == ask(again, 2).points[:1]
    assert play(study, OptunaStrategy(study.problem, name), 30, workers=2) == points


@pytest.mark.parametrize("name", ["cmaes", "nsga2"])
def test_a_generation_that_is_pending_is_awaited(name: str) -> None:
    study = of_one(truth(2, steps=10), "med=exp,fin=avd")
    strategy = OptunaStrategy(study.problem, name)
    done: tuple[Point, ...] = ()
    for _ in range(2):  # CMA-ES begins with a generation of one
        asked: tuple[Point, ...] = ()
        while more := strategy.ask(study.told(done, asked), 5).points:
            asked += more
        assert 1 <= len(asked) <= 16
        waiting = strategy.ask(study.told(done + asked[:-1], asked[-1:]), 5)
        assert (waiting.points, waiting.why_done) == ((), "")
        done += asked
    assert len(asked) > 1
    assert strategy.ask(study.told(done), 1).points


@pytest.mark.parametrize("name", ["tpe", "cmaes", "nsga2"])
def test_one_want_is_climbed_to(name: str) -> None:
    """With 40 of 441 points."""
    study = of_one(truth(2, steps=10, seed=4), "med=avd,fin=exp")
    points = play(study, OptunaStrategy(study.problem, name), 40)
    _, found = study.problem.board.judge(study.told(points).scores, study.problem.wants)
    _, margins = study.problem.board.judge(
        study.formula(study.problem.space.lams), study.problem.wants
    )
    # Among the best fiftieth, and from then on mostly in the better half.
    assert found.max() >= np.quantile(margins, 0.98)
    assert (found[20:] > np.quantile(margins, 0.5)).mean() > 0.5


@pytest.mark.parametrize("name", FAST)
def test_the_bound_is_kept(name: str) -> None:
    whole = truth(2, steps=5)
    space = Space(whole.problem.space.axes, bound=Fraction(4, 5))
    study = Truth(Problem(space, whole.problem.board, whole.problem.wants[::4]), whole.formula)
    points = play(study, OptunaStrategy(study.problem, name), 15)
    assert len(set(points)) == 15
    assert all(point in space for point in points)
    assert len(points) < len(space) < len(whole.problem.space)


@pytest.mark.parametrize("name", FAST)
def test_small_spaces_are_measured_whole(name: str) -> None:
    study = truth(1, steps=3)
    strategy = OptunaStrategy(study.problem, name)
    points = play(study, strategy, 100)
    assert sorted(points) == list(study.problem.space.points)
    assert strategy.ask(study.told(points), 1).why_done == "all 7 points were asked for"


def test_guards_count(square: Truth) -> None:
    study = truth(2, steps=5, guard=True)
    for name in ("tpe", "nsga2"):
        points = play(study, OptunaStrategy(study.problem, name), 20, workers=2)
        assert len(set(points)) == 20


def test_it_stops_when_told_to(square: Truth) -> None:
    want = of_one(square, "med=exp")
    strategy = OptunaStrategy(want.problem, "random", stop="found")
    points = play(want, strategy, 100)
    assert want.found(points) == set(want.problem.wants)
    assert strategy.ask(want.told(points), 1).why_done == "every wanted combination was found"


def test_seeds_differ(square: Truth) -> None:
    for name in FAST:
        asked = []
        for seed in (0, 1):
            problem = Problem(
                square.problem.space, square.problem.board, square.problem.wants, seed
            )
            asked.append(OptunaStrategy(problem, name).ask(square.told(()), 3).points)
        assert asked[0] != asked[1]


def test_optuna_is_left_as_it_was_and_says_nothing(
    square: Truth, capfd: pytest.CaptureFixture[str]
) -> None:
    before = optuna.logging.get_verbosity()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in FAST:
            play(square, OptunaStrategy(square.problem, name), 12, workers=3)
    assert optuna.logging.get_verbosity() == before
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("package", "name"), [("optuna", "tpe"), ("cmaes", "cmaes"), ("scipy", "gp")]
)
def test_missing_packages_are_named(
    package: str, name: str, square: Truth, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError) as error:
        OptunaStrategy(square.problem, name)
    assert str(error.value) == (
        f"--strategy optuna:{name} needs the package '{package}', which is not installed; "
        "install it with: pip install 'avops[search]'"
    )


def test_unknown_samplers_are_refused() -> None:
    problem = Problem(space_of(1), truth(1).problem.board, ())
    with pytest.raises(
        RecipeError, match="optuna:bo: no sampler has this name, expected one of tpe"
    ):
        OptunaStrategy(problem, "bo")
    with pytest.raises(RecipeError, match="optuna:tpe: no stop 'never'"):
        OptunaStrategy(problem, "tpe", stop="never")


def warn(module: str, category: type[Warning] = optuna.exceptions.ExperimentalWarning) -> None:
    warnings.warn_explicit("it may change", category, "file.py", 1, module=module)


def test_only_our_own_notes_on_what_is_experimental_are_silent() -> None:
    """And only inside: the list of filters is everybody's."""
    kind = optuna.exceptions.ExperimentalWarning
    before, entries = warnings.filters, list(warnings.filters)
    with _hush:
        assert warnings.filters is before
        warn("avops.search.strategies.samplers")
        warn("optuna.samplers._tpe.sampler")
        for module in ("__main__", "theirs", "optuna.study", "avops.search.strategies.grid"):
            with pytest.raises(kind):
                warn(module)
        with pytest.raises(UserWarning):
            warn("avops.search.strategies.samplers", UserWarning)
    assert warnings.filters is before
    assert list(warnings.filters) == entries
    with pytest.raises(kind):
        warn("optuna.samplers._tpe.sampler")


def test_other_threads_warn_as_they_would_and_settings_come_back() -> None:
    """Two that plan at once: the second to leave restores what was there before the first."""
    entries, verbosity = list(warnings.filters), optuna.logging.get_verbosity()
    entered, leave = threading.Event(), threading.Event()
    raised: list[bool] = []

    def plan() -> None:
        with _hush:
            entered.set()
            leave.wait(60)
            warn("optuna.samplers._tpe.sampler")

    def other() -> None:
        try:
            warn("optuna.samplers._tpe.sampler")
        except optuna.exceptions.ExperimentalWarning:
            raised.append(True)

    planner = threading.Thread(target=plan)
    with _hush:
        planner.start()
        assert entered.wait(60)
        stranger = threading.Thread(target=other)
        stranger.start()
        stranger.join()
        assert raised == [True]
    assert optuna.logging.get_verbosity() == optuna.logging.ERROR
    leave.set()
    planner.join()
    assert optuna.logging.get_verbosity() == verbosity
    assert list(warnings.filters) == entries
