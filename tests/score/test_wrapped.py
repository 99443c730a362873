"""Models as callers hand them in: adapted, compiled, partly in training mode."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import adapters
from avops.errors import UserError
from avops.score import Generator, Prompt, Sampling, Scorer, TokenPlan, oracle_scores
from avops.score.forwards import COMPILED_CALL, bare
from score.architectures import make
from score.bound import rounding_bound

HALF_ULP = 2.0**-24  # relative: S is rounded once, from f64 to f32

ALL_LINEAR = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "init_lora_weights": False}


def adapted(name: str, kind: str = "LoraConfig", **options: Any) -> Any:
    """A model with an adapter that is not merged, with random weights."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(3)
    config = getattr(peft, kind)(**options)
    if name == "gpt2":
        config.fan_in_fan_out = True
    with adapters.quiet():
        return peft.get_peft_model(make(name), config).eval()


def bound_of(model: Any, plan: TokenPlan, truth: np.ndarray) -> np.ndarray:
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return rounding_bound(model, plan) + HALF_ULP * np.abs(truth)


@pytest.mark.parametrize("path", ["packed", "exact"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_adapters_that_are_not_merged(name: str, path: str, plan: TokenPlan) -> None:
    model = adapted(name, **ALL_LINEAR)
    truth, plain = oracle_scores(model, plan), oracle_scores(make(name), plan)
    assert np.abs(truth - plain).min() > 1e-3
    scorer = Scorer(model, plan, path=path)
    got = scorer.run()
    with model.disable_adapter():
        without = scorer.run()
    bound = bound_of(model.merge_and_unload(), plan, truth)
    assert scorer.path == path
    assert (np.abs(got - truth) <= 2 * bound).all()  # W + BA, and (W + BA) rounded: two evaluations
    assert (np.abs(without - plain) <= bound_of(make(name), plan, plain)).all()


def test_an_adapter_is_taken_packed_unless_asked(plan: TokenPlan) -> None:
    scorer = Scorer(adapted("llama", **ALL_LINEAR), plan)
    scorer.run()
    assert scorer.path == "packed"


def test_an_adapted_head(plan: TokenPlan) -> None:
    options = {"r": 4, "target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}
    model = adapted("llama", **options)
    head = model.get_output_embeddings()
    with torch.no_grad():
        head.weight.mul_(1.5)
    truth = oracle_scores(model, plan)
    assert np.abs(truth - oracle_scores(make("llama"), plan)).min() > 1e-3
    got = Scorer(model, plan).run()
    assert (np.abs(got - truth) <= bound_of(model, plan, truth)).all()


@pytest.mark.parametrize("kind", ["PromptTuningConfig", "PrefixTuningConfig"])
def test_adapters_that_are_no_weights_are_refused(
    kind: str, plan: TokenPlan, tokenizer: Any
) -> None:
    """Rows would be counted from another place, and a cache would lose the adapter's keys."""
    model = adapted("llama", kind, task_type="CAUSAL_LM", num_virtual_tokens=4)
    for work in (lambda: Scorer(model, plan), lambda: Generator(model, tokenizer)):
        with pytest.raises(UserError) as caught:
            work()
        name = kind.removesuffix("TuningConfig").upper()
        assert f"PeftModelForCausalLM: its adapter of type {name}_TUNING puts" in str(caught.value)
        assert "expected an adapter of weights, such as LoRA" in str(caught.value)


@pytest.mark.parametrize("path", ["auto", "exact"])
def test_rows_that_are_not_those_of_the_tokens_are_refused(
    path: str, plan: TokenPlan, tokenizer: Any
) -> None:
    model = make("llama")
    own = model.forward

    def forward(input_ids: torch.Tensor, position_ids: Any = None, **options: Any) -> Any:
        longer = torch.cat([input_ids.new_full((len(input_ids), 3), 9), input_ids], 1)
        return own(input_ids=longer, **options)

    model.forward = forward
    message = r"the model's head is given \d+ rows for \d+ tokens, expected one for each; a model"
    with pytest.raises(UserError, match=message):
        Scorer(model, plan, path=path).run()
    with pytest.raises(UserError, match=r"is given 6 rows for 3 tokens"):
        Generator(model, tokenizer).answer(Prompt((1, 30, 31)))


def compiled(kind: str) -> Any:
    """Llama, with code that torch.compile has made of some of it, and which has run."""
    model = make("llama")
    if kind == "wrapped":
        model = torch.compile(model, backend="eager")
    elif kind == "in place":
        model.compile(backend="eager")
    elif kind == "forward":
        model.forward = torch.compile(model.forward, backend="eager")
    elif kind == "layers":
        for layer in model.model.layers:
            layer.compile(backend="eager")
    elif kind == "wrapped layers":
        for number, layer in enumerate(model.model.layers):
            model.model.layers[number] = torch.compile(layer, backend="eager")
    with torch.inference_mode():
        model(input_ids=torch.arange(5, 17)[None], use_cache=False)
    return model


@pytest.mark.parametrize("kind", ["wrapped", "in place", "forward", "layers", "wrapped layers"])
def test_compiled_models_run_as_they_are_written(
    kind: str, plan: TokenPlan, tokenizer: Any
) -> None:
    torch._dynamo.reset()
    plain, model = make("llama"), compiled(kind)
    for path in ("packed", "exact"):
        want = Scorer(plain, plan, path=path).run()
        scorer = Scorer(model, plan, path=path)
        with torch._dynamo.config.patch(error_on_recompile=True):
            got = scorer.run()
        if (kind, path) == ("wrapped layers", "packed"):  # no layer of transformers' own: not fused
            bound = bound_of(plain, plan, want)
            assert (np.abs(got - want) <= bound).all()
        else:
            assert np.array_equal(got, want)
    assert np.array_equal(oracle_scores(model, plan), oracle_scores(plain, plan))
    prompt, few = Prompt(tuple(plan.sequence(0, 0).tolist())), Sampling(max_tokens=5)
    answers = [Generator(each, tokenizer, few).answer(prompt).ids for each in (plain, model)]
    assert answers[0] == answers[1]
    # And is compiled again afterwards.
    inner = bare(model)
    calls = [vars(module).get(COMPILED_CALL) for module in inner.modules()]
    assert sum(call is not None for call in calls) == {"in place": 1, "layers": 2}.get(kind, 0)
    assert hasattr(model.forward, "_torchdynamo_orig_callable") == (kind in ("wrapped", "forward"))


def test_errors_name_the_model_in_its_wrapper(plan: TokenPlan) -> None:
    model = make("llama").train()
    with pytest.raises(UserError, match="^LlamaForCausalLM: the model is in training mode"):
        Scorer(torch.compile(model, backend="eager"), plan).run()


def test_a_part_in_training_mode_is_refused(plan: TokenPlan, tokenizer: Any) -> None:
    """Where it has a dropout; in others the mode means nothing."""
    model = make("gpt2")
    scorer = Scorer(model, plan)
    want = scorer.run()
    model.transformer.ln_f.train()
    assert np.array_equal(scorer.run(), want)
    part = model.transformer.h[1].mlp.train()
    for work in (
        scorer.run,
        lambda: oracle_scores(model, plan),
        lambda: Generator(model, tokenizer).answer(Prompt((1, 30, 31))),
    ):
        with pytest.raises(UserError) as caught:
            work()
        assert str(caught.value) == (
            "GPT2LMHeadModel: its module transformer.h.1.mlp.dropout is in training mode, where "
            "dropout makes results random, expected all of it in eval mode; call model.eval() first"
        )
    part.eval()
    assert np.array_equal(scorer.run(), want)
    with pytest.raises(UserError, match="the model is in training mode"):
        oracle_scores(model.train(), plan)
