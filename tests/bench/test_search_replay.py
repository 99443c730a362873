"""Replays count what they should."""

from __future__ import annotations

import numpy as np

from bench import search
from bench.truths import Grid
from search.truths import truth


def test_a_replay_counts_until_everything_was_hit() -> None:
    found = truth(1, seed=1)
    problem = found.problem
    scores = found.formula(problem.space.lams)
    run = search.replay(Grid(5, problem.space, problem.board, scores), "active", 0)
    assert run["reachable"] == len(found.reachable) == run["found"]
    assert run["curve"][run["all_at"] - 1] == 3 > run["curve"][run["all_at"] - 2]
    assert len(run["curve"]) == run["measured"] <= len(problem.space)
    assert 0.9 < run["margin_share"] <= 1


def test_a_run_that_missed_something_counts_as_endless() -> None:
    shared = {
        "kind": "random", "reachable": 4, "measured": 3, "margin_share": 1.0, "seconds_per_ask": 0.0
    }  # fmt: skip
    runs = [
        {**shared, "all_at": None, "curve": [1, 2, 3]},
        {**shared, "all_at": 3, "curve": [1, 2, 4]},
        {**shared, "all_at": 200, "curve": [*np.minimum(np.arange(200), 3).tolist(), 4]},
    ]
    (row,) = search.summary(runs)
    assert (row["runs"], row["complete"], row["within_110"]) == (3, 2, 1)
    assert (row["median"], row["least"], row["most"]) == (200, 3, None)
    assert row["at_110"] == (0.75 + 1 + 0.75) / 3
