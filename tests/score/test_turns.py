"""Threads that score one model get the numbers that each gets alone."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from avops.errors import UserError
from avops.score import Generator, Prompt, Sampling, Scorer, TokenPlan, oracle_scores, turns
from avops.score.model import new_model
from score.conftest import ARCHITECTURES

Make = Callable[..., Any]
PATIENCE = 60.0


@pytest.fixture(autouse=True)
def one_thread_each() -> Iterator[None]:
    """Pools of several threads, side by side, would mostly wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def together(*works: Callable[[], Any]) -> list[Any]:
    """What ``works`` give, each in a thread of its own, all begun at once; or what they raise."""
    results: list[Any] = [None] * len(works)
    begin = threading.Barrier(len(works), timeout=PATIENCE)

    def carry_out(number: int, work: Callable[[], Any]) -> None:
        begin.wait()
        try:
            results[number] = work()
        except Exception as error:
            results[number] = error

    threads = [
        threading.Thread(target=carry_out, args=pair, daemon=True) for pair in enumerate(works)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert not any(thread.is_alive() for thread in threads)
    return results


@pytest.mark.parametrize("path", ["packed", "exact"])
def test_threads_that_score_one_model(make_model: Make, plan: TokenPlan, path: str) -> None:
    model = make_model("qwen2")
    scorers = [Scorer(model, plan, batch_tokens=size, path=path) for size in (1, 60, 4096)]
    want = [scorer.run() for scorer in scorers]
    truth = oracle_scores(model, plan)
    works = [scorer.run for scorer in scorers] + [lambda: oracle_scores(model, plan)]
    for _ in range(3):
        for got, alone in zip(together(*works), [*want, truth], strict=True):
            assert np.array_equal(got, alone), got
    assert model.config._attn_implementation == "sdpa"
    assert not any("forward" in vars(module) for module in model.modules())


def test_first_runs_in_two_threads(make_model: Make, plan: TokenPlan) -> None:
    """The self-check, too, is one thread's; and a part's, of the scorer that it is a part of."""
    want = Scorer(make_model("llama"), plan).run()
    model = make_model("llama")
    scorer, other = Scorer(model, plan), Scorer(model, plan)
    first, second, part = together(scorer.run, other.run, lambda: scorer.part([1]).path)
    assert np.array_equal(first, want)
    assert np.array_equal(second, want)
    assert part == "packed"
    assert scorer.check == other.check is not None


def test_models_of_one_config_take_turns(plan: TokenPlan) -> None:
    torch.manual_seed(5)
    one = new_model(ARCHITECTURES["llama"]).eval()
    two = type(one)(one.config).eval()
    assert two.config is one.config
    scorers = [Scorer(model, plan, batch_tokens=1) for model in (one, two)]
    want = [scorer.run() for scorer in scorers]
    for _ in range(3):
        for got, alone in zip(together(*(s.run for s in scorers)), want, strict=True):
            assert np.array_equal(got, alone), got
    assert one.config._attn_implementation == "sdpa"


def test_answers_while_another_thread_scores(
    make_model: Make, plan: TokenPlan, tokenizer: Any
) -> None:
    model = make_model("llama")
    scorer = Scorer(model, plan, batch_tokens=1)
    generator = Generator(model, tokenizer, Sampling(max_tokens=20))
    prompt = Prompt(tuple(plan.sequence(0, 0).tolist()))
    scores, answer = scorer.run(), generator.answer(prompt)
    for _ in range(3):
        got = together(scorer.run, lambda: generator.answer(prompt))
        assert np.array_equal(got[0], scores), got
        assert got[1].ids == answer.ids


@pytest.mark.parametrize("path", ["packed", "exact"])
def test_another_threads_own_call_gets_an_error_or_its_own_logits(
    make_model: Make, plan: TokenPlan, path: str
) -> None:
    model = make_model("llama")
    ids = torch.arange(5, 25)[None]
    with torch.inference_mode():
        want = model(input_ids=ids, use_cache=False).logits
    scorer = Scorer(model, plan, path=path)
    alone = scorer.run()
    found: list[Any] = []

    def call() -> torch.Tensor:
        with torch.inference_mode():
            logits: torch.Tensor = model(input_ids=ids, use_cache=False).logits
            return logits

    own = scorer._path.score

    def score(unit: Any) -> Any:
        """The other thread calls in the midst of it: within the forward, for the exact path."""
        project = torch.nn.functional.linear

        def linear(*given: Any) -> torch.Tensor:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(torch.nn.functional, "linear", project)
                found.extend(together(call))
            return project(*given)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.nn.functional, "linear", linear)
            if path == "packed":
                found.extend(together(call))
            return own(unit)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scorer._path, "score", score)
        assert np.array_equal(scorer.run(), alone)
    assert found
    for given in found:
        if path == "exact":
            assert torch.equal(given, want)
        else:
            assert isinstance(given, UserError), given
            assert "LlamaAttention: it was called while avops scores its model, in ano" in str(
                given
            )
            assert "until Scorer.run() is done" in str(given)


@pytest.mark.parametrize("path", ["packed", "exact"])
def test_a_run_within_a_run_is_refused(
    make_model: Make, plan: TokenPlan, tokenizer: Any, path: str
) -> None:
    model = make_model("llama")
    scorer = Scorer(model, plan, batch_tokens=1, path=path)
    alone = scorer.run()
    generator = Generator(model, tokenizer)
    prompt = Prompt((1, 30, 31))
    works = (
        Scorer(model, plan).run,
        lambda: oracle_scores(model, plan),
        lambda: generator.answer(prompt),
    )
    for work in works:
        with pytest.raises(UserError) as caught:
            scorer.run(lambda *_, work=work: work() and None)
        assert "LlamaForCausalLM: it is to be run by avops within a run of its own" in str(
            caught.value
        )
        assert "expected one run after the other" in str(caught.value)
    assert np.array_equal(scorer.run(), alone)  # nobody's turn is left taken


def test_nothing_is_kept_of_models_that_are_gone(make_model: Make) -> None:
    gc.collect()
    before = len(turns._TURNS)
    model = make_model("llama")
    with turns.turn(model):
        assert len(turns._TURNS) == before + 1
    del model
    gc.collect()
    assert len(turns._TURNS) == before
