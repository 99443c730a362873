"""Strategies by name."""

from __future__ import annotations

import importlib
from dataclasses import replace

import pytest

from avops.errors import RecipeError
from avops.search.strategies.registry import DEFAULT, STRATEGIES, make_strategy
from search.truths import truth

PROBLEM = truth(1, steps=5).problem


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_name_makes_a_strategy_that_bears_it(name: str) -> None:
    if name.startswith("optuna:"):
        pytest.importorskip("optuna")
        pytest.importorskip("cmaes")
        pytest.importorskip("scipy")
    strategy = make_strategy(name, PROBLEM)
    assert strategy.name == name
    asked = strategy.ask(truth(1, steps=5).told(()), 2)
    assert 1 <= len(asked.points) <= 2
    assert len(asked.reasons) == len(asked.points)
    assert set(asked.points) <= set(PROBLEM.space.points)


@pytest.mark.parametrize("name", [name for name in STRATEGIES if name != "optuna:gp"])
def test_points_without_scores_are_not_asked_for_again(name: str) -> None:
    """A third of them is not finite: every strategy goes to its end on the others."""
    if name.startswith("optuna:"):
        pytest.importorskip("optuna")
        pytest.importorskip("cmaes")
    study = truth(2, steps=2, items=4)
    strategy = make_strategy(name, study.problem)
    told, out = study.told(()), set(study.problem.space.points[::3])
    for _ in range(len(study.problem.space) + 1):
        asked = strategy.ask(told, 3)
        assert asked == make_strategy(name, study.problem).ask(told, 3)
        assert not set(asked.points) & told.taken
        if not asked.points:
            break
        sound = tuple(point for point in asked.points if point not in out)
        known = study.told((*told.points, *sound))
        told = replace(known, out=(*told.out, *(p for p in asked.points if p in out)))
    assert asked.why_done
    assert name == "active" or name == "refine" or told.taken == set(study.problem.space.points)


def test_every_entry_has_one_line_of_help() -> None:
    for entry in STRATEGIES.values():
        assert entry.help
        assert "\n" not in entry.help
        assert hasattr(
            importlib.import_module(f"avops.search.strategies.{entry.module}"), entry.maker
        )
    assert DEFAULT in STRATEGIES


def test_options_go_over_those_of_the_table() -> None:
    points = make_strategy("grid:lexicographic", PROBLEM).ask(truth(1).told(()), 3).points
    assert points == PROBLEM.space.points[:3]
    other = make_strategy("grid:lexicographic", PROBLEM, order="coarse")
    assert other.ask(truth(1).told(()), 1).points == ((0,),)
    with pytest.raises(RecipeError, match="no stop 'never'"):
        make_strategy("grid", PROBLEM, stop="never")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("activ", "did you mean active?"),
        ("grid:lexicografic", "did you mean grid:lexicographic"),
        ("optuna:cma", "did you mean optuna:cmaes"),
        ("zzz", "expected one of active, grid"),
    ],
)
def test_unknown_names_are_refused_with_near_ones(name: str, hint: str) -> None:
    with pytest.raises(RecipeError) as error:
        make_strategy(name, PROBLEM)
    assert f"--strategy {name}: no strategy has this name; " in str(error.value)
    assert hint in str(error.value)
