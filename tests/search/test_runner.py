"""The loop: deterministic, overlapped, within its budget, and resumable to the same end."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from avops.errors import NonFiniteError
from avops.search.budget import Budget
from avops.search.fanout.crew import Crew
from avops.search.fanout.local import LocalWorker
from avops.search.points import Place
from avops.search.report.facts import facts_of
from avops.search.report.status import status_of
from avops.search.runner import Search
from avops.search.store import Store
from search import synthetic
from search.synthetic import IDENTITY, Lexicographic, Maker, Silent


def crew(maker: Maker = Maker(), workers: int = 1) -> Crew:  # noqa: B008
    places = [Place(number) for number in range(workers)]
    return Crew([LocalWorker(maker.make(place), place) for place in places], "d")


def searched(
    directory: Path,
    *,
    maker: Maker = Maker(),  # noqa: B008
    workers: int = 1,
    budget: Budget = Budget(),  # noqa: B008
    study: Any = None,
    **options: Any,
) -> tuple[Search, Lexicographic, Silent]:
    study = study or synthetic.study()
    strategy, watch = Lexicographic(study.problem, **options), Silent()
    with Store.open(directory, study, IDENTITY) as store, crew(maker, workers) as own:
        search = Search(store, strategy, own, budget, watch)
        search.run()
        search.results = store.results()  # type: ignore[attr-defined]
        search.batches = store.asked()  # type: ignore[attr-defined]
    return search, strategy, watch


def rows(directory: Path) -> dict[Any, bytes]:
    with Store.read(directory) as store:
        return {result.point: result.scores.tobytes() for result in store.results()}


def paths(directory: Path) -> list[Any]:
    with Store.read(directory) as store:
        return [batch.points for batch in store.asked()]


def test_every_point_is_measured_once(tmp_path: Path) -> None:
    search, _, watch = searched(tmp_path)
    points = synthetic.space().points
    assert search.why == "all were asked"
    assert sorted(rows(tmp_path)) == sorted(points)
    assert search.clock.evaluations == search.measured == len(points) == len(watch.seen)
    last = watch.seen[-1]
    assert (last.measured, last.budget, last.wanted) == (81, None, 9)
    assert last.found == search.found == 9
    assert [now.measured for now in watch.seen] == list(range(1, 82))


def test_the_next_batch_is_planned_while_one_is_measured(tmp_path: Path) -> None:
    study = synthetic.study(batch=4)
    _, strategy, _ = searched(tmp_path, study=study, most=12)
    first, second, third, *_ = (told for told, _ in strategy.asked)
    assert (first.points, first.pending) == ((), ())
    assert (len(second.points), len(second.pending)) == (0, 4)
    assert third.points == second.pending
    assert len(third.pending) == 4
    # A strategy that has nothing to add while points are pending is asked again without any.
    last = strategy.asked[-1][0]
    assert (len(last.points), last.pending) == (12, ())


@pytest.mark.parametrize("workers", [2, 5])
def test_workers_and_timing_change_nothing(tmp_path: Path, workers: int) -> None:
    searched(tmp_path / "one")
    searched(tmp_path / "many", workers=workers, maker=Maker(pause=0.002), pause=0.003)
    assert paths(tmp_path / "one") == paths(tmp_path / "many")
    assert rows(tmp_path / "one") == rows(tmp_path / "many")


def test_the_planner_hides_behind_evaluations(tmp_path: Path) -> None:
    study = synthetic.study(batch=5)
    search, *_ = searched(tmp_path, study=study, maker=Maker(pause=0.01), most=40, pause=0.03)
    assert search.clock.planner >= 8 * 0.03
    # The first plan has nothing to hide behind, and the last, empty ones: three of ten or so.
    assert search.clock.waited < search.clock.planner / 2


def test_a_budget_counts_all_evaluations_of_the_directory(tmp_path: Path) -> None:
    search, *_ = searched(tmp_path, budget=Budget(evaluations=10))
    assert (search.measured, search.why) == (10, "the budget of 10 evaluations is spent")
    assert sum(map(len, paths(tmp_path))) == 10
    again, *_ = searched(tmp_path, budget=Budget(evaluations=10))
    assert (again.clock.evaluations, again.why) == (0, "the budget of 10 evaluations is spent")
    more, *_ = searched(tmp_path, budget=Budget(evaluations=15))
    assert (more.clock.evaluations, more.measured) == (5, 15)


def test_hours_end_a_search_with_what_is_in_hand(tmp_path: Path) -> None:
    begin = time.monotonic()
    search, *_ = searched(tmp_path, maker=Maker(pause=0.05), budget=Budget(hours=0.4 / 3600))
    assert search.why == "the budget of 0.000111111 hours is spent"
    assert 1 <= search.measured < 12
    assert time.monotonic() - begin < 5
    assert len(rows(tmp_path)) == search.measured
    # What was asked and not measured comes first in the next command.
    batch = [point for points in paths(tmp_path) for point in points]
    searched(tmp_path, budget=Budget(evaluations=len(batch)))
    assert set(batch) <= set(rows(tmp_path))


def test_an_error_ends_the_search_and_keeps_the_rest(tmp_path: Path) -> None:
    searched(tmp_path / "whole")
    bad = paths(tmp_path / "whole")[3][1]
    with pytest.raises(NonFiniteError, match="weights are NaN at"):
        searched(tmp_path / "run", maker=Maker(fail=(bad,)))
    kept = rows(tmp_path / "run")
    assert 9 <= len(kept) < 81
    assert bad not in kept
    searched(tmp_path / "run")
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")
    assert paths(tmp_path / "run") == paths(tmp_path / "whole")


BROKEN = ((0, 1), (2, -2), (4, 4))


@pytest.mark.parametrize("workers", [1, 3])
def test_points_where_something_is_not_finite_are_left_out(tmp_path: Path, workers: int) -> None:
    """And nothing else: the search goes to its end, and says what it left out."""
    search, strategy, watch = searched(tmp_path, maker=Maker(broken=BROKEN), workers=workers)
    points = set(synthetic.space().points)
    assert set(rows(tmp_path)) == points - set(BROKEN)
    assert (search.measured, search.looked, search.out) == (len(points) - 3, len(points), 0)
    assert search.why == "all were asked"
    assert set(strategy.asked[-1][0].out) == set(BROKEN)
    assert "med:0 fin:0.25 is left out, as no hit can be there: a weight is NaN" in watch.notes
    assert len(watch.notes) == 3
    whole, *_ = searched(tmp_path / "again", maker=Maker(broken=BROKEN))
    assert whole.batches == search.batches  # type: ignore[attr-defined]
    with Store.read(tmp_path) as store:
        state = status_of(store)
        assert (state.broken, state.out, state.waiting) == (3, 0, 0)
        assert set(store.told().out) == set(BROKEN)
        (note,) = facts_of(store, model=False).notes
    assert note.startswith("3 points left out, the first med:")
    assert note.endswith(": a weight is NaN")


def test_what_is_not_finite_counts_and_is_not_measured_again(tmp_path: Path) -> None:
    budget = Budget(evaluations=81)
    maker = Maker(broken=BROKEN)
    searched(tmp_path, maker=maker, budget=Budget(evaluations=40))
    searched(tmp_path, maker=maker, budget=budget)
    with Store.read(tmp_path) as store:
        notes = store.notes("broken")
        assert len(notes) == len(store.broken()) == 3
    # Of another study of these weights and items, too.
    wide = synthetic.study("med:-1:1.25:.25", "fin:-1:1:.25")
    more, *_ = searched(tmp_path, maker=maker, study=wide)
    assert more.measured == 90 - 3
    with Store.read(tmp_path) as store:
        assert len(store.notes("broken")) == 3


def test_a_base_that_is_not_finite_is_an_error(tmp_path: Path) -> None:
    study = synthetic.study()
    with Store.open(tmp_path, study, IDENTITY) as store, crew(Maker(broken=((0, 0),))) as own:
        search = Search(store, Lexicographic(study.problem), own, Budget(), Silent())
        with pytest.raises(NonFiniteError, match=r"the first point, med:0 fin:0: a weight is NaN "):
            search.begin()


def test_another_study_of_one_identity_begins_with_all_points(tmp_path: Path) -> None:
    searched(tmp_path, budget=Budget(evaluations=9))
    before = [*rows(tmp_path)]
    wider = synthetic.study("med:-2:2:.25", "fin:-1:1:.25", seed=5)
    search, strategy, _ = searched(tmp_path, study=wider, budget=Budget(evaluations=15))
    assert [*strategy.asked[0][0].points] == before
    assert search.measured == 15
    narrower = synthetic.study("med:0:1:.25", "fin:-1:1:.25")
    search, strategy, _ = searched(tmp_path, study=narrower, most=1)
    assert all(point[0] >= 0 for point in strategy.asked[0][0].points)
    assert 0 < search.measured < 15


def test_sweeps_come_first(tmp_path: Path) -> None:
    study = synthetic.study(baselines=("sweeps",))
    _, strategy, _ = searched(tmp_path, study=study, most=12)
    sweep = {(p, 0) for p in (-4, -2, 0, 2, 4)} | {(0, p) for p in (-4, -2, 0, 2, 4)}
    assert set(paths(tmp_path)[0]) == sweep
    assert set(strategy.asked[0][0].pending) == sweep
    with Store.read(tmp_path) as store:
        assert store.results()[0].reason == "baseline: sweeps"


def test_notes_of_a_strategy_are_kept_once(tmp_path: Path) -> None:
    import dataclasses

    class Noting(Lexicographic):
        def ask(self, told: Any, count: int) -> Any:
            return dataclasses.replace(super().ask(told, count), note="the model does not fit")

    study, watch = synthetic.study(), Silent()
    with Store.open(tmp_path, study, IDENTITY) as store, crew() as own:
        Search(store, Noting(study.problem, most=9), own, Budget(), watch).run()
        assert [n.value["text"] for n in store.notes("strategy")] == ["the model does not fit"]
    assert watch.notes == ["the model does not fit"]


def test_scores_are_those_of_the_measurer(tmp_path: Path) -> None:
    searched(tmp_path, most=5)
    with Store.read(tmp_path) as store:
        for result in store.results():
            assert np.array_equal(result.scores, synthetic.scores(result.point, 36))
