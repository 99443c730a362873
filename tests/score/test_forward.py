"""Both paths against the oracle, and all against numbers worked out by hand."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from avops.errors import DataError, NonFiniteError, UserError
from avops.score import Items, Scorer, TokenPlan, encode, encode_ids, exact, oracle_scores, score
from score.bound import rounding_bound

Make = Callable[..., Any]
HALF_ULP = 2.0**-24  # relative: S is rounded once, from f64 to f32


@pytest.fixture(scope="module")
def truth(any_model: Any, plan: TokenPlan) -> np.ndarray:
    return oracle_scores(any_model, plan)


@pytest.fixture(scope="module")
def bound(any_model: Any, plan: TokenPlan, truth: np.ndarray) -> np.ndarray:
    return rounding_bound(any_model, plan) + HALF_ULP * np.abs(truth)


@pytest.mark.parametrize("path", ["packed", "exact"])
@pytest.mark.parametrize("batch_tokens", [1, 70, 4096])
def test_equal_to_the_oracle_however_batched(
    any_model: Any,
    plan: TokenPlan,
    truth: np.ndarray,
    bound: np.ndarray,
    batch_tokens: int,
    path: str,
) -> None:
    scorer = Scorer(any_model, plan, batch_tokens=batch_tokens, path=path)
    got = scorer.run()
    assert scorer.path == path
    assert got.dtype == np.float32
    assert got.shape == (5, 3)
    assert (np.abs(got - truth) <= bound).all()


def test_the_bound_has_teeth(
    any_model: Any, plan: TokenPlan, items: Items, truth: np.ndarray, bound: np.ndarray
) -> None:
    # Every mistake below moves most scores by far more than the bound allows.
    starts, width = plan.starts, len(items.levels)
    ids = [[plan.sequence(i, k).tolist() for k in range(width)] for i in range(len(items))]
    short = [[row[:-1] for row in rows] for rows in ids]
    no_bos = [[row[1:] for row in rows] for rows in ids]
    for other in (
        encode_ids(items, ids, (starts + 1).tolist(), score_eos=True),
        encode_ids(items, short, starts.tolist(), score_eos=False),
        encode_ids(items, no_bos, (starts - 1).tolist(), score_eos=True),
    ):
        moved = np.abs(oracle_scores(any_model, other) - truth)
        assert np.median(moved / bound) > 50
    assert bound.max() < 1e-3  # a bf16 log-softmax is off by about 1e-3 per token


def test_same_bits_every_time(any_model: Any, plan: TokenPlan) -> None:
    scorer = Scorer(any_model, plan)
    first = scorer.run()
    assert np.array_equal(scorer.run(), first)
    assert np.array_equal(Scorer(any_model, plan).run(), first)


def test_nothing_is_kept_from_the_weights(make_model: Make, plan: TokenPlan) -> None:
    model = make_model("qwen2")  # tied: one weight is embedding and head
    scorer = Scorer(model, plan)
    first = scorer.run()
    pristine = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.25)
    changed = scorer.run()
    assert np.abs(changed - first).min() > 0
    assert np.array_equal(changed, Scorer(model, plan).run())
    model.load_state_dict(pristine)
    assert np.array_equal(scorer.run(), first)


@pytest.mark.parametrize("path", ["packed", "exact"])
def test_only_scored_rows_reach_the_head(model: Any, plan: TokenPlan, path: str) -> None:
    rows = []
    linear = torch.nn.functional.linear

    def count(x: torch.Tensor, weight: torch.Tensor, bias: Any = None) -> torch.Tensor:
        rows.append(x.shape[-2] if weight is model.lm_head.weight else 0)
        return linear(x, weight, bias)

    scorer = Scorer(model, plan, batch_tokens=200, path=path)
    scorer.run()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "linear", count)
        scorer.run()
    # The packed path multiplies by the head itself, and once for what responses share.
    assert sum(rows) == (plan.record.scored_tokens if path == "exact" else 0)
    assert "forward" not in model.lm_head.__dict__


def test_logits_per_batch_are_bounded(
    model: Any, plan: TokenPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = int(plan.scored.max())  # the longest response fits, two do not
    monkeypatch.setattr(exact, "BATCH_LOGITS", limit * 400)
    monkeypatch.setattr(exact, "SOFTMAX_LOGITS", 3 * 400 + 1)
    rows, parts = [], []
    softmax = torch.log_softmax
    with monkeypatch.context() as patch:
        patch.setattr(torch, "log_softmax", lambda x, dim: parts.append(len(x)) or softmax(x, dim))
        hook = model.lm_head.register_forward_hook(lambda *args: rows.append(args[2].shape[1]))
        got = Scorer(model, plan, path="exact").run()
        hook.remove()
    assert (max(rows), max(parts)) == (limit, 3)
    bound = rounding_bound(model, plan) + HALF_ULP * np.abs(got)
    assert (np.abs(got - oracle_scores(model, plan)) <= bound).all()


@pytest.mark.parametrize("path", ["packed", "exact"])
def test_progress_counts_tokens(model: Any, plan: TokenPlan, path: str) -> None:
    calls: list[tuple[int, int]] = []
    scorer = Scorer(model, plan, batch_tokens=40, path=path)
    scorer.run(lambda done, total: calls.append((done, total)))
    whole = int((plan.lengths - 1).sum())
    assert scorer.tokens == whole if path == "exact" else scorer.tokens < 0.7 * whole
    assert {call[1] for call in calls} == {scorer.tokens}
    assert calls[-1][0] == scorer.tokens
    assert all(a < b for (a, _), (b, _) in itertools.pairwise(calls))
    assert len(calls) > 3


@pytest.mark.parametrize("path", ["packed", "exact"])
def test_an_interrupted_run_is_taken_up(model: Any, plan: TokenPlan, path: str) -> None:
    scorer = Scorer(model, plan, batch_tokens=40, path=path)
    whole = scorer.run()
    finished: dict[str, np.ndarray] = {}

    def stop(done: int, total: int) -> None:
        if len(finished) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scorer.run(stop, finished=finished)
    first = scorer.units[0]
    assert set(finished) == {unit.sha256 for unit in scorer.units[:2]}
    finished[first.sha256] = kept = finished[first.sha256] - np.float32(1)
    again = Scorer(model, plan, batch_tokens=40, path=path).run(finished=finished)
    assert len(finished) == len(scorer.units)
    assert finished[first.sha256] is kept  # not computed again
    changed = np.zeros(int(plan.scored.sum()), bool)
    changed[first.slots] = True
    owner = np.repeat(np.arange(plan.scored.size), plan.scored.ravel())
    moved = np.isin(np.arange(plan.scored.size), owner[changed]).reshape(whole.shape)
    assert np.array_equal(again[~moved], whole[~moved])
    assert (again[moved] < whole[moved] - 0.5).all()


# A network whose layers add nothing: the next token depends on the present one alone.


def bigram(make_model: Make) -> tuple[Any, np.ndarray]:
    """The model, and its log-probs [token, next token] by numpy in f64."""
    model = make_model("mistral")
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    embedding = model.model.embed_tokens.weight.detach().double().numpy()
    head = model.lm_head.weight.detach().double().numpy()
    eps = model.config.rms_norm_eps
    hidden = embedding / np.sqrt((embedding**2).mean(axis=1, keepdims=True) + eps)
    logits = hidden @ head.T
    return model, logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def test_by_hand_first_row_and_end_of_turn(make_model: Make, items: Items, tokenizer: Any) -> None:
    model, log_probs = bigram(make_model)
    for score_eos in (True, False):
        plan = encode(items, tokenizer, score_eos=score_eos)
        bound = rounding_bound(model, plan)
        got, truth = Scorer(model, plan).run(), oracle_scores(model, plan)
        for i, k in np.ndindex(got.shape):
            ids, start = plan.sequence(i, k), plan.starts[i, k]
            # The first scored token is read from the query's last row, ids[start - 1].
            pairs = list(itertools.pairwise(ids[start - 1 :].tolist()))
            assert (pairs[-1][1] == tokenizer.eos_token_id) is score_eos
            expected = sum(log_probs[pair] for pair in pairs) / len(pairs)
            assert len(pairs) == plan.scored[i, k]
            assert abs(truth[i, k] - expected) <= bound[i, k]
            assert abs(got[i, k] - expected) <= bound[i, k] + HALF_ULP * abs(expected)


@pytest.mark.parametrize("name", ["mistral", "gemma2"])
def test_zero_head_gives_minus_log_v(make_model: Make, plan: TokenPlan, name: str) -> None:
    model = make_model(name, tie_word_embeddings=False)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    expected = np.float32(-math.log(400))
    ulp = np.spacing(np.abs(expected))  # logf may round the other way; the mean adds nothing
    for got in (Scorer(model, plan).run(), oracle_scores(model, plan)):
        assert len(np.unique(got)) == 1
        assert np.abs(got - expected).max() <= ulp


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["mistral", "gemma2"])
def test_half_precision_model_gets_f32_logits(
    make_model: Make, plan: TokenPlan, name: str, dtype: torch.dtype
) -> None:
    model = make_model(name).to(dtype)
    got = Scorer(model, plan, batch_tokens=1, path="exact").run()
    with pytest.raises(UserError, match=rf"logits are {dtype}, expected float32"):
        oracle_scores(model, plan)
    weight = model.lm_head.weight.detach().double()
    cap = model.config.to_dict().get("final_logit_softcapping")
    coarse = 0
    for i, k in np.ndindex(got.shape):
        ids = torch.from_numpy(plan.sequence(i, k).astype(np.int64))
        start = plan.starts[i, k]
        with torch.inference_mode():
            hidden = model.model(input_ids=ids[None, :-1], use_cache=False).last_hidden_state[0]
        hidden = hidden[start - 1 :].double()
        logits = hidden @ weight.T
        logits = cap * torch.tanh(logits / cap) if cap else logits
        exact, rounded = (
            torch.log_softmax(each, -1).gather(1, ids[start:, None]).mean().item()
            for each in (logits, logits.to(dtype).double())
        )
        # Worst case in f32: a logit sums 32 products, and the log-prob moves by twice as much;
        # log-softmax sums 400 terms, and rounds, as the cap does, numbers of a logit's size.
        products = (hidden.abs() @ weight.abs().T).amax(-1).mean().item()
        bound = HALF_ULP * (2 * (32 + 2) * products + 400 + 24 * logits.abs().max().item())
        assert abs(got[i, k] - exact) <= bound
        coarse += abs(rounded - exact) > bound
    assert coarse  # logits in half precision would have been seen


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("path", ["packed", "exact"])
def test_broken_weights_fail(make_model: Make, plan: TokenPlan, value: float, path: str) -> None:
    model = make_model("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[3, 5] = value
    # The exact path begins with the longest sequence, the packed one with the first item.
    where = {"packed": "line 1, level 'exp'", "exact": "line 5, level 'gen'"}[path]
    scorer = Scorer(model, plan, path=path)
    with pytest.raises(
        NonFiniteError, match=rf"items.jsonl, {where}: the log-prob of scored token 1 is n"
    ):
        scorer.run()
    assert scorer.check is None  # nothing was learnt about the path: the next run asks again
    assert model.config._attn_implementation == "sdpa"
    assert "forward" not in model.lm_head.__dict__


def test_float16_that_overflows_says_so(make_model: Make, plan: TokenPlan) -> None:
    model = make_model("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.mul_(1e6)
    assert np.isfinite(Scorer(model, plan).run()).all()
    with pytest.raises(NonFiniteError, match="nothing is above 65504: load the model in bfloat16"):
        Scorer(model.to(torch.float16), plan).run()
    with torch.no_grad():
        model.float().model.norm.weight.fill_(math.nan)
    with pytest.raises(NonFiniteError, match="a λ that is too large$"):
        Scorer(model, plan).run()


def test_the_failing_token_is_named(
    model: Any, plan: TokenPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = Scorer(model, plan)
    slot = int(plan.scored.ravel()[:10].sum()) + 2  # sequence 10 is line 4, level gen

    def score_badly(unit: Any) -> np.ndarray:
        slots = np.arange(unit.slots.start, unit.slots.stop)
        return np.where(slots == slot, -np.inf, -1).astype(np.float32)

    monkeypatch.setattr(scorer._path, "score", score_badly)
    with pytest.raises(NonFiniteError, match=r"line 4, level 'gen': .* scored token 3 is -inf"):
        scorer.run()


def test_log_probs_above_zero_fail(
    model: Any, plan: TokenPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = Scorer(model, plan)
    monkeypatch.setattr(
        scorer._path, "score", lambda unit: np.full(len(unit.pairs), 1e-6, np.float32)
    )
    with pytest.raises(
        NonFiniteError, match=r"is 9.9\S+e-07, expected a finite number of at most 0"
    ):
        scorer.run()


def test_training_mode_is_refused(make_model: Make, plan: TokenPlan) -> None:
    scorer = Scorer(make_model("gpt2").train(), plan)
    with pytest.raises(UserError, match=r"GPT2LMHeadModel: the model is in training mode"):
        scorer.run()


@pytest.mark.parametrize("name", ["mistral", "gpt2"])
def test_nothing_is_truncated(make_model: Make, plan: TokenPlan, name: str) -> None:
    longest = int(plan.lengths.max()) - 1
    field = "n_positions" if name == "gpt2" else "max_position_embeddings"
    assert np.isfinite(Scorer(make_model(name, **{field: longest}), plan).run()).all()
    with pytest.raises(DataError) as caught:
        Scorer(make_model(name, **{field: longest - 1}), plan)
    assert f"line 5, level 'gen': the chat has {longest} tokens before its last" in str(
        caught.value
    )
    assert f"takes {longest - 1} positions (1 items are too long)" in str(caught.value)


def test_tokenizer_of_another_model(make_model: Make, plan: TokenPlan) -> None:
    number = int(plan.ids.argmax())
    place = plan.place(*divmod(int((plan.offsets <= number).sum()) - 1, 3))
    with pytest.raises(DataError) as caught:
        Scorer(make_model("llama", vocab_size=int(plan.ids.max())), plan)
    assert f"{place}: token id {plan.ids.max()}, and the model's vocabulary has" in str(
        caught.value
    )


def test_the_sequence_of_a_foreign_token_is_named(make_model: Make, items: Items) -> None:
    # A first token, as GPT-2's <|endoftext|> would be, belongs to the sequence it begins.
    ids = [[[3, 5, 7] for _ in items.levels] for _ in items]
    ids[2][1][0] = 400
    plan = encode_ids(items, ids, np.ones((5, 3), int).tolist(), score_eos=True)
    with pytest.raises(DataError, match=r"line 3, level 'gen': token id 400, and the model's voca"):
        Scorer(make_model("mistral"), plan)


def test_models_that_cannot_be_scored(make_model: Make, plan: TokenPlan) -> None:
    with pytest.raises(UserError, match=r"MistralModel: it has no language-model head"):
        Scorer(make_model("mistral").model, plan)
    with pytest.raises(UserError, match=r"batch_tokens is 0, expected 1 or more"):
        Scorer(make_model("mistral"), plan, batch_tokens=0)
    with pytest.raises(UserError, match=r"path is 'fast', expected one of auto, packed, exact"):
        Scorer(make_model("mistral"), plan, path="fast")

    class OtherHead(torch.nn.Linear):
        pass

    model = make_model("mistral").to(torch.bfloat16)
    model.lm_head.__class__ = OtherHead
    with pytest.raises(UserError, match=r"its head is a OtherHead in torch.bfloat16, expected"):
        Scorer(model, plan)


def test_a_forward_that_goes_round_its_head_is_refused(make_model: Make, plan: TokenPlan) -> None:
    model = make_model("mistral")
    model.get_output_embeddings = lambda: torch.nn.Linear(32, 400)
    with pytest.raises(UserError, match=r"its forward gives torch.float32 logits of shape"):
        Scorer(model, plan).run()


def test_score_in_one_call(model: Any, items: Items, tokenizer: Any, plan: TokenPlan) -> None:
    calls: list[tuple[int, int]] = []
    result = score(model, items, tokenizer, progress=lambda *call: calls.append(call))
    assert np.array_equal(result.scores, Scorer(model, plan).run())
    assert result.plan.record == plan.record
    assert result.summary["all"].n == 5
    assert calls
    plain = score(model, items, tokenizer, template="<s>{query} {response}</s>", score_eos=False)
    assert (plain.plan.record.kind, plain.plan.record.score_eos) == ("text", False)
