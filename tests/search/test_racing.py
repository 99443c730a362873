"""Racing in a run: the same winner for fewer items, whoever measures and however often killed."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import random
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from avops.search.points import Job, PointEvaluator, PointSetup
from avops.search.racing import Heat, Out, incumbent, race_of
from avops.search.report.status import status_of
from avops.search.sets import parse_guard
from avops.search.store import Store
from avops.search.strategies.active import Active
from avops.search.strategies.race import Race
from avops.search.strategies.strategy import Told
from avops.search.study import HOLDOUT, Study
from avops.search.verdicts import picks
from search.raced import searched, study, world
from search.test_points import job, setup, space
from small_project import SmallProject

TESTS = Path(__file__).parent.parent
ITEMS = 130  # of a point of raced.study: 60 of each domain, ten pairs


def contents(directory: Path) -> Any:
    """Everything but times and who measured."""
    with Store.read(directory) as store:
        rows = {result.point: result.scores.tobytes() for result in store.results()}
        outs = {
            point: {k: v for k, v in note.value.items() if k not in ("seconds", "worker")}
            for point, note in store.outs().items()
        }
        return rows, outs, store.asked()


def winner(directory: Path) -> Any:
    with Store.read(directory) as store:
        return picks(store.study.problem, store.told())[store.study.wants[0]]


@pytest.mark.parametrize("want", [0, 2, 4])
def test_the_winner_is_the_one_without_racing_for_fewer_items(tmp_path: Path, want: int) -> None:
    """Stated: each candidate as good as its incumbent is lost in at most .01 of races."""
    whole, most = searched(tmp_path / "whole", study(want, race=False))
    race, least = searched(tmp_path / "raced", study(want))
    assert most == 81 * ITEMS
    assert least < 0.75 * most  # 50, 54 and 72 % of them
    assert (race.looked, race.measured + race.out, whole.out) == (81, 81, 0)
    won = winner(tmp_path / "raced")
    assert won == winner(tmp_path / "whole")
    rows, outs, _ = contents(tmp_path / "raced")
    assert rows[won] == contents(tmp_path / "whole")[0][won]
    assert len(outs) == race.out > 0
    assert sum(out["items"] for out in outs.values()) + ITEMS * len(rows) == least


def test_who_is_out_is_recorded_with_the_reason(tmp_path: Path) -> None:
    searched(tmp_path, study())
    rows, outs, batches = contents(tmp_path)
    assert not rows.keys() & outs.keys()
    board, want = study().board, study().wants
    for point, out in outs.items():
        (batch,) = [batch for batch in batches if point in batch.points]
        assert batch.against == tuple(out["against"])
        best = np.frombuffer(rows[batch.against], np.float32)
        assert out["margin"] == board.judge(best[None], want)[1][0, 0]
        assert 0 <= out["doubt"] <= 0.01
        assert 0 < out["items"] < out["of"] == ITEMS
        assert f"after {out['items']} of 130 items its margin is below +" in out["reason"]
    with Store.read(tmp_path) as store:
        state = status_of(store)
    assert (state.measured, state.out, state.waiting) == (len(rows), len(outs), 0)


def test_strategies_never_see_scores_of_who_is_out(tmp_path: Path) -> None:
    search, _ = searched(tmp_path, study())
    with Store.read(tmp_path) as store:
        _, outs, _ = contents(tmp_path)
        assert not set(store.told().points) & outs.keys()
    # The store is closed, so told() of the search is remade from a new one.
    with Store.read(tmp_path) as store:
        search.store = store
        told = search.told()
    assert set(told.out) == outs.keys()
    assert told.taken == set(study().space.points)
    assert told.scores.shape == (81 - len(outs), study().board.outputs)
    assert np.isfinite(told.scores).all()


@pytest.mark.parametrize("workers", [2, 5])
def test_workers_and_timing_change_nothing(tmp_path: Path, workers: int) -> None:
    searched(tmp_path / "one", study(4), pause=0.001)
    # A slow planner: the batch in hand is measured before the next is asked for.
    searched(tmp_path / "many", study(4), workers=workers, think=0.01)
    assert contents(tmp_path / "many") == contents(tmp_path / "one")
    _, outs, batches = contents(tmp_path / "many")
    assert len({batch.against for batch in batches}) > 2
    for point, out in outs.items():
        (batch,) = [batch for batch in batches if point in batch.points]
        assert batch.against == tuple(out["against"])


def test_a_run_is_taken_up_after_kills(tmp_path: Path) -> None:
    rng, measured = random.Random(1), 0

    def started() -> subprocess.Popen[str]:
        words = [sys.executable, "-m", "search.raced", str(tmp_path / "run")]
        env = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])}
        return subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=env)

    for _ in range(2):
        process = started()
        assert process.stdout is not None
        for _ in range(rng.randrange(15, 30)):
            process.stdout.readline()
        time.sleep(rng.uniform(0, 0.01))
        process.kill()
        process.communicate(timeout=60)
        rows, outs, _ = contents(tmp_path / "run")
        assert len(rows) + len(outs) > measured
        measured = len(rows) + len(outs)
    assert outs
    text, _ = started().communicate(timeout=60)
    # Nothing that was kept is measured again, neither whole nor in part.
    assert text.splitlines()[-1] == f"end {81 - measured}"
    searched(tmp_path / "whole", study())
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


def test_the_budget_counts_who_is_out(tmp_path: Path) -> None:
    search, _ = searched(tmp_path, study(), budget=40)
    assert (search.looked, search.why) == (40, "the budget of 40 evaluations is spent")
    assert search.out > 0
    again, items = searched(tmp_path, study(), budget=40)
    assert (again.clock.evaluations, items, again.out) == (0, 0, search.out)


def test_who_is_out_for_one_want_is_free_for_another(tmp_path: Path) -> None:
    first, _ = searched(tmp_path, study(0))
    second, _ = searched(tmp_path, study(4))
    assert first.out > second.out
    with Store.read(tmp_path) as store:
        assert len(store.results()) + len(store.outs()) == 81
    # Without racing, everything is measured.
    last, _ = searched(tmp_path, study(4, race=False))
    assert (last.measured, last.out) == (81, 0)


def test_no_incumbent_no_race(tmp_path: Path) -> None:
    """A want that nothing hits: every point is measured on all items."""
    want = dataclasses.replace(
        study(7).wants[0], floors=(("med", Fraction(1)), ("fin", Fraction(1)))
    )
    own = dataclasses.replace(study(), wants=(want,))
    search, items = searched(tmp_path, own)
    assert (search.measured, search.out, items) == (81, 0, 81 * ITEMS)


def test_the_incumbent_is_the_best_hit_and_the_first_of_equals() -> None:
    own, told = study(), world().told(study().space.points)
    margins = own.board.judge(told.scores, own.wants)[1][:, 0]
    best = told.points[int(margins.argmax())]
    assert incumbent(told, own) == best
    assert incumbent(told, own) == best
    other = next(point for point in told.points if point != best)
    row = world().evaluate(best)
    for equals in ((best, other), (other, best)):
        assert incumbent(Told(equals, np.stack([row, row])), own) == equals[0]
    missed = told.points[int(margins.argmin())]
    assert incumbent(world().told((missed,)), own) is None
    assert incumbent(Told.nothing(own.board), own) is None


def test_active_races_only_what_its_model_can_do_without(tmp_path: Path) -> None:
    own = study(strategy="active", batch=2)
    searched(tmp_path, own)
    rows, _, batches = contents(tmp_path)
    for batch in batches:
        if set(batch.reasons) & {"first points", "fills the space"}:
            assert batch.against is None
            assert set(batch.points) <= rows.keys()
    assert any(batch.against is not None for batch in batches)
    assert set(Active(own.problem)._first) <= rows.keys()


def test_active_asks_for_none_that_is_out() -> None:
    own = study(strategy="active")
    strategy = Active(own.problem, polish=40.0)
    told = world().told(tuple(strategy._first))
    asked = strategy.ask(told, 3).points
    assert len(asked) == 3
    after = dataclasses.replace(told, out=asked)
    assert not set(strategy.ask(after, 3).points) & set(asked)


def test_a_job_that_races_travels_light() -> None:
    own = study()
    assert own.space.points  # listed, as in a search
    race = race_of(own)
    assert race is not None
    best = world().evaluate((0, 0))
    sent = pickle.dumps(Job((1, 1), heat=Heat(race, (0, 0), best)))
    assert len(sent) < 20_000
    heat = pickle.loads(sent).heat
    assert [b.tolist() for b in heat.race.blocks((1, 1))] == [
        b.tolist() for b in race.blocks((1, 1))
    ]


def test_studies_read_back_and_old_ones_do_not_race() -> None:
    assert Study.from_json(study().to_json()) == study()
    assert race_of(study(race=False)) is None
    old = json.loads(study().to_json())
    del old["race"]
    assert not Study.from_json(json.dumps(old)).race


def test_a_live_model_measures_blocks_as_it_measures_all(project: SmallProject) -> None:
    """Search items and two guards, block by block; held-out items have no part in it."""
    pairs = [
        {"prompt": f"how {n}?", "chosen": f"take {n} of them", "rejected": "no"} for n in range(6)
    ]
    Path("pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    more = [{**pair, "prompt": f"where {n}?"} for n, pair in enumerate(pairs[:4])]
    Path("more.jsonl").write_text("\n".join(map(json.dumps, more)))
    files = ["help=pairs.jsonl", "safe=more.jsonl"]
    guards = tuple(parse_guard("help>=.5,safe>=.5", files))
    evaluator = PointEvaluator(PointSetup(setup(), guards, ".5"))
    count = sum(map(len, evaluator.sets.search))
    board = evaluator.sets.board()
    own = Study(space(), board, board.combinations()[:1], evaluator.sets.holdout_board(), race=True)
    race = race_of(own)
    assert race is not None
    whole = evaluator.evaluate(job((1, -2))).scores
    # Nobody is as good as who wins every item.
    best = np.full(board.outputs, -2, np.float32)
    best[: board.main.outputs : 3] = best[board.main.outputs :: 2] = -1
    heat = Heat(race, (0, 0), best)
    first = evaluator.evaluate(job((1, -2), heat=heat))
    assert first.out is not None
    assert (first.scores.shape, first.out.against, first.out.of) == ((0,), (0, 0), count)
    assert first.out.items < count
    seen: list[int] = []

    def some(items: Any) -> Any:
        seen.extend(items.tolist())
        return evaluator._part(job((1, -2)), None, items)

    row, out = dataclasses.replace(heat, race=Never(race.problem, race.want)).run((1, -2), some)
    assert out is None
    assert sorted(seen) == list(range(count))
    # Blocks hold other items, and products are summed in another order: up to a few roundings
    # of log-probs of about 6 nats, 2^-24 · 6 · √(products of some 50 terms).
    assert np.abs(row - whole).max() < 2e-5
    again, _ = dataclasses.replace(heat, race=Never(race.problem, race.want)).run((1, -2), some)
    assert again.tobytes() == row.tobytes()
    assert evaluator.evaluate(job((1, -2))).scores.tobytes() == whole.tobytes()
    held = evaluator.evaluate(job((1, -2), HOLDOUT)).scores
    assert held.shape == (evaluator.sets.holdout_board().outputs,)  # type: ignore[union-attr]


class Never(Race):
    """Puts nobody out."""

    def standing(self, *_: Any) -> Any:
        return dataclasses.make_dataclass("Standing", ["go_on"])(True)


def test_out_in_words() -> None:
    certain, likely = Out((1, 2), 0.25, 0.0, 30, 90), Out((1, 2), -0.1, 0.0042, 30, 90)
    assert certain.reason == "after 30 of 90 items its margin is below +0.250, for certain"
    assert likely.reason.endswith("below -0.100, but for a probability of 0.004")
