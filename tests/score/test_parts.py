"""Some items of a plan: the plan that they alone would make, and the same scores."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from avops.score import Items, Scorer, TokenPlan, encode


@pytest.mark.parametrize("rows", [[0, 1, 2, 3, 4], [1, 3], [4, 0], [2]])
def test_a_part_is_the_plan_of_its_items(
    items: Items, tokenizer: Any, plan: TokenPlan, rows: list[int]
) -> None:
    some = dataclasses.replace(items, entries=tuple(items[row] for row in rows))
    part, alone = plan.part(rows), encode(some, tokenizer)
    assert part.items == some
    assert part.record == alone.record
    for name in ("ids", "offsets", "starts", "shared", "scored"):
        mine, other = getattr(part, name), getattr(alone, name)
        assert mine.dtype == other.dtype
        assert mine.tolist() == other.tolist()


@pytest.mark.parametrize("path", ["packed", "exact"])
def test_its_scores_are_those_of_the_whole(any_model: Any, plan: TokenPlan, path: str) -> None:
    """One item a pass: the same products are summed in the same order."""
    scorer = Scorer(any_model, plan, batch_tokens=1, path=path)
    part = scorer.part([1, 3, 4])
    found = part.run()
    assert part.path == scorer.path == path
    assert part.check is scorer.check
    assert found.tobytes() == scorer.run()[[1, 3, 4]].tobytes()
    assert part.tokens < scorer.tokens
    # The whole one is as it was.
    assert scorer.plan is plan
    assert sum(unit.tokens for unit in scorer.units) == scorer.tokens


def test_a_path_that_was_left_is_left_for_parts(
    any_model: Any, plan: TokenPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    from avops.score import forward
    from avops.score.check import Verdict

    monkeypatch.setattr(forward, "self_check", lambda *_: Verdict(True, "a reason"))
    part = Scorer(any_model, plan).part([0, 2])
    assert (part.path, part.reason) == ("exact", "a reason")
    assert np.isfinite(part.run()).all()
