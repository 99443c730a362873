"""The four norms: what is counted, and that they are four different argmaxes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from avops.errors import UserError
from avops.score import Item, Items, ScoreTable, TokenPlan, normalise, oracle_scores, summarise
from avops.score.norms import NORMS, lengths


def test_bytes_and_characters_of_the_text_as_it_stands() -> None:
    texts = {"a": "plain", "b": " été—λ\n", "c": "👩‍⚕️"}
    items = Items("x", ("a", "b", "c"), (Item("m", "q", texts, 1),))
    nbytes, characters = lengths(items)
    # é and λ have 2 bytes, — 3; the emoji is four code points of 4 + 3 + 3 + 3 bytes.
    assert nbytes.tolist() == [[5, 12, 13]]
    assert characters.tolist() == [[5, 7, 4]]


def test_each_norm_has_its_own_winner() -> None:
    # Per token, in sum, per byte, per character the winner is a, b, c, d.
    tokens = np.array([[40, 4, 30, 30]], np.int32)
    nbytes = np.array([[40, 8, 400, 120]], np.int32)
    characters = np.array([[40, 8, 60, 120]], np.int32)
    means = np.array([[-0.5, -2, -1, -1]], np.float32)
    sums = [-20, -8, -30, -30]
    size = {"tokens": tokens, "nbytes": nbytes, "characters": characters}
    got = {norm: normalise(means, norm, **size) for norm in NORMS}
    assert got["token"] is means
    assert got["sum"].tolist() == [sums]
    assert got["byte"].tolist() == [[-20 / 40, -8 / 8, -30 / 400, -30 / 120]]
    assert got["char"].tolist() == [[-20 / 40, -8 / 8, -30 / 60, -30 / 120]]
    assert [int(got[norm].argmax()) for norm in NORMS] == [0, 1, 2, 3]


def test_an_unknown_norm() -> None:
    one = np.ones((1, 1), np.int32)
    with pytest.raises(UserError, match=r"norm 'word': unknown, expected one of token, sum, byte"):
        normalise(one, "word", tokens=one, nbytes=one, characters=one)


def test_the_sum_has_the_end_of_turn_and_so_has_t(
    model: Any, plan: TokenPlan, items: Items
) -> None:
    """Against log-probs token by token: the sum and T_r count the end, bytes do not."""
    import torch

    means = oracle_scores(model, plan).astype(np.float32)
    table = ScoreTable.start(items, [plan])
    ids = torch.from_numpy(plan.sequence(0, 0).astype(np.int64))
    with torch.inference_mode():
        log_probs = torch.log_softmax(model(input_ids=ids[None, :-1]).logits[0], -1)
    start = int(plan.starts[0, 0])
    steps = [log_probs[p - 1, ids[p]].item() for p in range(start, len(ids))]
    assert plan.record.end_of_turn is not None
    assert ids[-1] == plan.record.end_of_turn.id
    assert len(steps) == table.tokens[0, 0, 0]
    size = {
        "tokens": table.tokens[0],
        "nbytes": table.nbytes,
        "characters": table.characters,
    }
    got = float(normalise(means, "sum", **size)[0, 0])
    # The mean is rounded once to f32: half an ulp, relative to the sum; f64 sums add 1e-12.
    assert got == pytest.approx(sum(steps), rel=2.0**-24 + 1e-12)
    assert abs(got - sum(steps[:-1])) > 1e-3
    text = items[0].responses["exp"]
    assert normalise(means, "byte", **size)[0, 0] == got / len(text.encode())


def test_equal_responses_tie_under_every_norm() -> None:
    third = np.float32(-1 / 3)
    same = np.full((1, 2), 7, np.int32)
    items = Items("x", ("a", "b"), (Item("m", "q", {"a": "r", "b": "r"}, 1),))
    means = np.full((1, 2), third, np.float32)
    for norm in NORMS:
        values = normalise(means, norm, tokens=same, nbytes=same * 3, characters=same)
        assert summarise(values, items).overall.ties == 1
