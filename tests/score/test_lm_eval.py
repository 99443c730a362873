"""lm-evaluation-harness's HF backend, softmax in f32, gives the same means; skipped without it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from avops.score import Scorer, TokenPlan
from score.architectures import make
from score.bound import rounding_bound

UNIT = 2.0**-24


def sums(model: Any, tokenizer: Any, plan: TokenPlan) -> np.ndarray:
    """Σ log P of each item and level, as the harness computes it from token ids."""
    huggingface = pytest.importorskip(
        "lm_eval.models.huggingface", reason="lm-evaluation-harness is not installed"
    )
    lm = huggingface.HFLM(
        pretrained=model,
        tokenizer=tokenizer,
        backend="causal",
        batch_size=4,
        max_length=int(plan.lengths.max()),
        softmax_dtype="float32",
    )
    requests = []
    for pair in np.ndindex(plan.starts.shape):
        ids, start = plan.sequence(*pair).tolist(), int(plan.starts[pair])
        requests.append((("", ""), ids[:start], ids[start:]))
    found = lm._loglikelihood_tokens(requests, disable_tqdm=True)
    return np.array([total for total, _ in found]).reshape(plan.starts.shape)


@pytest.mark.filterwarnings("default")  # the harness's and its libraries' own
@pytest.mark.parametrize("name", ["mistral", "llama", "gemma2", "gpt2"])
def test_the_harness_agrees(name: str, plan: TokenPlan, make_tokenizer: Any) -> None:
    model = make(name)
    want = sums(model, make_tokenizer(pad_token="</s>"), plan) / plan.scored
    scorer = Scorer(model, plan)
    got = scorer.run()
    assert scorer.path == "packed"
    # Two f32 evaluations (score/bound.py); S in f32; a sum of T terms in f32, in any order.
    bound = rounding_bound(model, plan) + UNIT * np.abs(want) * (1 + plan.scored)
    assert (np.abs(got - want) <= bound).all()
    # A token more or less in T would be seen.
    long = plan.scored > 1
    off = np.abs(got - want * plan.scored / np.maximum(plan.scored - 1, 1))
    assert (off > 10 * bound)[long].all()
