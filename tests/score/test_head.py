"""The head: which way makes its log-probs, and that nothing of an earlier λ is left in it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from avops.kernels import LogProb, extension, registry
from avops.score import Scorer, TokenPlan, oracle_scores
from avops.score.head import Change, Head
from score.architectures import make
from score.bound import rounding_bound

HALF_ULP = 2.0**-24  # relative: S is rounded once, from f64 to f32
ROWS = 11
NATIVE = pytest.mark.skipif(extension.NATIVE is None, reason="built without a C++ compiler")


def rows() -> tuple[torch.Tensor, torch.Tensor]:
    hidden = torch.randn(ROWS, 32, generator=torch.Generator().manual_seed(3))
    return hidden, torch.arange(ROWS) * 30


def learnt(model: Any) -> Head:
    made = Head(model)
    with torch.inference_mode():
        assert made.learn(torch.tensor([[1, 2]]))
    return made


@NATIVE
def test_threads_are_those_of_torch() -> None:
    """What LiveModel.threads sets holds for the head, too; its bits are the same."""
    made, before = learnt(make("llama")), torch.get_num_threads()
    asked = []

    def spy(self: LogProb, *args: Any, threads: int, **options: Any) -> None:
        asked.append(threads)
        init(self, *args, threads=threads, **options)

    init = LogProb.__init__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LogProb, "__init__", spy)
        try:
            found = []
            for threads in (1, 1, 3, 1):
                torch.set_num_threads(threads)
                found.append(made.log_probs(*rows()))
        finally:
            torch.set_num_threads(before)
    assert asked == [1, 3, 1]
    assert all(torch.equal(found[0], other) for other in found)


def test_weights_that_change_in_place_or_are_replaced() -> None:
    model = make("phi")
    made = learnt(model)
    first = made.log_probs(*rows())
    with torch.no_grad():
        model.lm_head.bias[30] += 1  # the second row's target
    moved = made.log_probs(*rows())
    assert moved[1] > first[1]
    assert (moved[2:] < first[2:]).all()
    model.lm_head.bias = torch.nn.Parameter(model.lm_head.bias.detach() * 2)
    assert torch.equal(made.log_probs(*rows()), learnt(model).log_probs(*rows()))


def test_without_a_fast_backend_torch_multiplies(
    plan: TokenPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = registry.resolve

    def resolve(operation: str, backend: Any = None, *, device: str = "cpu") -> Any:
        return own(operation, backend or "reference", device=device)

    monkeypatch.delenv("AVOPS_BACKEND", raising=False)
    monkeypatch.setattr(registry, "resolve", resolve)
    model = make("gemma2")
    scorer = Scorer(model, plan)
    got = scorer.run()
    assert scorer._head._kernel is None
    assert scorer._head._buffer is not None
    truth = oracle_scores(model, plan)
    bound = rounding_bound(model, plan) + HALF_ULP * np.abs(truth)
    assert (np.abs(got - truth) <= bound).all()


def test_the_reference_serves_who_asks_for_it(
    plan: TokenPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AVOPS_BACKEND", "reference")
    model = make("granite")
    scorer = Scorer(model, plan)
    got = scorer.run()
    kernel = scorer._head._kernel
    assert kernel is not None
    assert kernel.backend == "reference"
    truth = oracle_scores(model, plan)
    bound = rounding_bound(model, plan) + HALF_ULP * np.abs(truth)
    assert (np.abs(got - truth) <= bound).all()


def test_factors_are_rounded_as_torch_rounds_them() -> None:
    logits = torch.linspace(-60, 60, 1001)
    for change in (Change(multiply=0.1), Change(divide=3.3), Change(softcap=30.1)):
        rule = change.rule()
        rounded = Change(rule.multiply, rule.divide, rule.softcap)
        assert rounded != change
        assert torch.equal(rounded.apply(logits.clone()), change.apply(logits.clone()))


@pytest.mark.parametrize("name", ["mistral", "gemma2"])
def test_a_head_that_is_no_plain_matrix(name: str, plan: TokenPlan) -> None:
    class Scaled(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * 0.5

    model = make(name)
    model.lm_head.__class__ = Scaled
    scorer = Scorer(model, plan)
    got = scorer.run()
    assert (scorer.path, scorer._head._kernel) == ("packed", None)
    truth = oracle_scores(model, plan)
    bound = rounding_bound(model, plan) + HALF_ULP * np.abs(truth)
    assert (np.abs(got - truth) <= bound).all()
