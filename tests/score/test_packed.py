"""The packed path: every trap fails here on the naive way, and the right way holds the bound."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from avops.errors import UserError
from avops.kernels import Nodes
from avops.score import Item, Items, Scorer, TokenPlan, attention, encode_ids, head, oracle_scores
from avops.score.blocks import cut_blocks
from avops.score.check import PREFIX, draw, self_check
from avops.score.head import Head
from avops.score.packed import PackedPath, why_not, why_not_layers
from score.architectures import OTHERS, PACKABLE, make
from score.bound import rounding_bound

HALF_ULP = 2.0**-24  # relative: S is rounded once, from f64 to f32
QUERY = [7, 30, 31, 32, 33, 34, 35, 36, 37, 38, 39, 40, 41]


def plan_of(*rows: list[list[int]], starts: list[list[int]] | None = None) -> TokenPlan:
    """A plan of QUERY with these responses [item][level]."""
    levels = tuple("abcdefgh"[: len(rows[0])])
    entries = tuple(Item("x", "q", dict.fromkeys(levels, "r"), n + 1) for n in range(len(rows)))
    ids = [[QUERY + response for response in row] for row in rows]
    first = starts or [[len(QUERY)] * len(row) for row in rows]
    return encode_ids(Items("ids", levels, entries), ids, first, score_eos=False)


@pytest.fixture(scope="module")
def traps() -> TokenPlan:
    """Shared first tokens, one-token responses, equal ones, one in another, long ones."""
    long = [50 + k * 7 % 90 for k in range(40)]
    return plan_of(
        [[60, 61, 62, 63], [60, 61, 70, 71, 72], [60, 61, 62, 63]],
        [[60], [61], [60, 61, 62]],
        [[60, 61], [60, 61, 62, 63, 64], [60, 61, 62]],
        [long, [*long[:20], 9, 8, 7], [5, *long]],
    )


def bound_of(model: Any, plan: TokenPlan, truth: np.ndarray) -> np.ndarray:
    return rounding_bound(model, plan) + HALF_ULP * np.abs(truth)


@pytest.mark.parametrize("name", list(PACKABLE))
def test_every_architecture_gets_the_oracles_numbers(name: str, traps: TokenPlan) -> None:
    model = make(name)
    own = model.config._attn_implementation
    truth = oracle_scores(model, traps)
    bound = bound_of(model, traps, truth)
    scorer = Scorer(model, traps)
    got = scorer.run()
    assert (scorer.path, model.config._attn_implementation) == ("packed", own)
    assert (np.abs(got - truth) <= bound).all()
    # Nothing but whole items decides who is packed with whom: the same bound for any budget.
    for batch_tokens in (1, 60):
        other = Scorer(model, traps, batch_tokens=batch_tokens, path="packed").run()
        assert (np.abs(got - other) <= bound + HALF_ULP * np.abs(truth)).all()
    # What the self-check allows is of the size of what the oracle may differ by.
    assert scorer.check is not None
    assert 0 <= scorer.check.difference <= scorer.check.bound < 30 * bound.max() < 0.01
    assert got[0, 0] == got[0, 2]  # equal responses tie to the bit


@pytest.mark.parametrize("name", ["mistral", "gpt2"])
@pytest.mark.parametrize("query", [1, len(QUERY)])
@pytest.mark.parametrize("levels", [2, 200])
def test_responses_of_one_token(name: str, query: int, levels: int) -> None:
    """As of multiple choice; also of a query that is nothing but the first token."""
    names = tuple(f"level {number}" for number in range(levels))
    items = Items("ids", names, (Item("x", "q", dict.fromkeys(names, "r"), 1),) * 2)
    ids = [[[*QUERY[:query], 60 + number] for number in range(levels)] for _ in items]
    plan = encode_ids(items, ids, [[query] * levels] * 2, score_eos=False)
    model = make(name)
    truth = oracle_scores(model, plan)
    scorer = Scorer(model, plan)
    got = scorer.run()
    assert scorer.path == "packed"
    assert [unit.tokens for unit in scorer.units] == [2 * query]  # each query once
    some = plan_of([[60], [61]]) if query > 1 else plan
    few = plan.part([0]) if levels == 2 else some
    largest = rounding_bound(model, few).max()  # every response has the same rows behind it
    assert (np.abs(got - truth) <= 2 * largest + HALF_ULP * np.abs(truth)).all()


@pytest.mark.parametrize("name", list(OTHERS))
def test_what_cannot_be_packed_says_so_and_is_exact(name: str, plan: TokenPlan) -> None:
    model, reason = make(name), OTHERS[name][1]
    scorer = Scorer(model, plan)
    got = scorer.run()
    truth = oracle_scores(model, plan)
    assert (scorer.path, scorer.reason) == ("exact", reason)
    assert (np.abs(got - truth) <= bound_of(model, plan, truth)).all()
    with pytest.raises(UserError) as caught:
        Scorer(model, plan, path="packed").run()
    assert f"{type(model).__name__}: it cannot be scored packed: {reason}; use path=" in str(
        caught.value
    )


# The naive ways, each far outside the bound, and each seen by the self-check.


def by_positions_alone(model: Any, plan: TokenPlan) -> np.ndarray:
    """What a packed batch with position_ids, and no attention of its own, gives."""
    path = PackedPath(Head(model), cut_blocks(plan, 4096))
    (block,) = path.units
    with torch.inference_mode():
        path.head.learn(torch.tensor([[1, 2]]))
        values, _ = path.run(block)  # outside of a session: the model's own attention
    parts = np.split(values.numpy()[block.pairs], np.cumsum(plan.scored.ravel())[:-1])
    return np.array([part.mean() for part in parts]).reshape(plan.starts.shape)


@pytest.mark.parametrize("name", ["mistral", "llama", "gpt2"])
def test_packing_by_position_ids_alone_is_wrong(name: str, plan: TokenPlan) -> None:
    model = make(name)
    truth = oracle_scores(model, plan)
    wrong = np.abs(by_positions_alone(model, plan) - truth)
    assert (wrong[:, 1:] > 100 * bound_of(model, plan, truth)[:, 1:]).mean() > 0.9


def chains(patch: pytest.MonkeyPatch, spoil: Callable[[int, int], list[tuple[int, int]]]) -> None:
    """Of the operation: what each node sees."""

    def nodes(layout: attention.Layout) -> Nodes:
        runs = [(node.begin, node.end) for node in layout._tree.nodes]
        return Nodes(runs, [spoil(*run) for run in runs])

    patch.setattr(attention.Layout, "nodes", nodes)


def lose_the_query(patch: pytest.MonkeyPatch) -> None:
    chains(patch, lambda begin, end: [(begin, end)])

    def cut(tree: Any, window: int | None, *, whole: bool) -> Iterator[attention.Piece]:
        for node in tree.nodes:
            rows = node.end - node.begin
            spans = ((node.begin, node.end),)
            yield attention.Piece(node.begin, node.end, spans, rows, 0)

    patch.setattr(attention, "_cut", cut)


def see_other_responses(patch: pytest.MonkeyPatch) -> None:
    chains(patch, lambda begin, end: [(0, end)])

    def cut(tree: Any, window: int | None, *, whole: bool) -> Iterator[attention.Piece]:
        for node in tree.nodes:
            spans = ((0, node.end),)
            yield attention.Piece(node.begin, node.end, spans, node.end, node.begin)

    patch.setattr(attention, "_cut", cut)


def align_top_left(patch: pytest.MonkeyPatch) -> None:
    own, given = attention._cut, attention.Layout.nodes

    def nodes(layout: attention.Layout) -> Nodes:
        found = given(layout)
        found.nodes[:, 2] = 0  # the depth
        return found

    patch.setattr(attention.Layout, "nodes", nodes)

    def cut(*args: Any, **options: Any) -> Iterator[attention.Piece]:
        return (piece._replace(offset=0) for piece in own(*args, **options))

    patch.setattr(attention, "_cut", cut)


def change(**own: Any) -> Callable[[pytest.MonkeyPatch], None]:
    def apply(patch: pytest.MonkeyPatch) -> None:
        given = attention.tree_attention

        def attend(*args: Any, **asked: Any) -> Any:
            done = given(*args, **asked | own)
            attention._LAYOUT.get().windows[-1] = asked.get("sliding_window")
            return done

        patch.setattr("avops.score.packed.tree_attention", attend)

    return apply


def wrong_positions(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        "avops.score.tree.Tree.positions", property(lambda tree: np.arange(tree.ids.size))
    )


NAIVE = {
    "loses the query": ("llama", lose_the_query),
    "sees other responses": ("llama", see_other_responses),
    "top-left causal": ("llama", align_top_left),
    "no window": ("mistral", change(sliding_window=None)),
    "a window one too wide": ("mistral", change(sliding_window=13)),
    "no soft-cap": ("gemma2", change(softcap=None)),
    "no scaling": ("gemma2", change(scaling=1.0)),
    "rows for positions": ("llama", wrong_positions),
    "rows for learned positions": ("gpt2", wrong_positions),
}


@pytest.mark.parametrize("naive", list(NAIVE))
@pytest.mark.parametrize("native", [True, False], ids=["tree_attention", "torch"])
def test_naive_attention_is_wrong_and_the_self_check_sees_it(
    naive: str, plan: TokenPlan, monkeypatch: pytest.MonkeyPatch, native: bool
) -> None:
    name, spoil = NAIVE[naive]
    if not native:
        monkeypatch.setattr(attention, "_native", lambda *_: None)
    model = make(name)
    truth = oracle_scores(model, plan)
    bound = bound_of(model, plan, truth)
    with monkeypatch.context() as patch:
        spoil(patch)
        scorer = Scorer(model, plan)
        with patch.context() as trusting:
            trusting.setattr(
                "avops.score.forward.self_check",
                lambda path, plan: self_check(path, plan)._replace(reason=None),
            )
            trusted = Scorer(model, plan)
            wrong = np.abs(trusted.run() - truth)
        got = scorer.run()
    assert trusted.path == "packed"
    assert np.median(wrong / bound) > 10
    assert scorer.path == "exact"
    assert "packed and whole sequences differ by" in scorer.reason
    assert (np.abs(got - truth) <= bound).all()


def test_a_four_dimensional_mask_drops_the_window(plan: TokenPlan) -> None:
    # A model given its whole mask makes no sliding one: packing through it is right only without.
    model = make("mistral")
    ids = torch.from_numpy(plan.sequence(4, 1).astype(np.int64))[None, :-1]
    rows = ids.shape[1]
    mask = torch.full((rows, rows), -torch.inf).triu(1)[None, None]
    with torch.inference_mode():
        own = model(input_ids=ids, use_cache=False).logits
        naive = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    assert torch.allclose(own[:, :12], naive[:, :12], atol=1e-4)  # inside the window, the same
    assert (own[:, 13:] - naive[:, 13:]).abs().amax() > 0.01


def test_rotary_positions_that_depend_on_the_length() -> None:
    factors = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "rope_theta": 10000.0}
    rope = {"rope_type": "longrope", "original_max_position_embeddings": 20, **factors}
    options = {"rope_parameters": rope, "original_max_position_embeddings": 20}
    model = make("phi3", sliding_window=None, **options)
    short, long = plan_of([[5, 6, 7], [5, 8, 9]]), plan_of([[5, 6, 7], list(range(50, 70))])
    for plan, path in ((short, "packed"), (long, "exact")):
        scorer = Scorer(model, plan)
        truth = oracle_scores(model, plan)
        assert (np.abs(scorer.run() - truth) <= bound_of(model, plan, truth)).all()
        assert scorer.path == path
    assert "rotary positions (longrope) depend on a sequence's length beyond 20" in scorer.reason
    # In one pass the longest would choose for all.
    path = PackedPath(Head(model), cut_blocks(long, 4096))
    with torch.inference_mode():
        path.head.learn(torch.tensor([[1, 2]]))
    with torch.inference_mode(), path.session():
        values = path.run(path.units[0])[0].numpy()[path.units[0].pairs]
    assert abs(values[:3].mean() - truth[0, 0]) > 100 * bound_of(model, long, truth)[0, 0]


def test_layers_that_ask_for_something_else() -> None:
    config = make("qwen2-window").config
    assert why_not_layers(config, [12, None], 99) is None
    assert why_not_layers(config, [None, None], 12) is None  # nothing is that long
    assert why_not_layers(config, [None, None], 13) == (
        "layer 0 asks for a window of None, and its config says 12"
    )
    assert why_not_layers(config, [12], 99) == (
        "1 of its 2 layers go through the AttentionInterface"
    )
    model = make("llama")
    assert why_not(model, 99) is None
    model._supports_attention_backend = False
    assert "does not go through transformers' AttentionInterface" in str(why_not(model, 99))


def test_logits_changed_in_an_unknown_way_take_the_exact_path(plan: TokenPlan) -> None:
    model = make("cohere2")
    truth = oracle_scores(model, plan)
    own = model.forward

    def forward(input_ids: Any = None, position_ids: Any = None, **kwargs: Any) -> Any:
        done = own(input_ids=input_ids, position_ids=position_ids, **kwargs)
        done.logits = done.logits * 1.5 + 0.25
        return done

    model.forward = forward
    scorer = Scorer(model, plan)
    got = scorer.run()
    assert scorer.reason == "what it does to logits after its head is not known"
    assert np.abs(got - truth).min() > 1e-3  # the exact path follows the model
    assert (np.abs(got - oracle_scores(model, plan)) <= bound_of(model, plan, truth) * 2).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["mistral", "gemma2", "granite", "phi"])
@pytest.mark.parametrize("fused", [True, False], ids=["head_logprob", "torch"])
def test_log_probs_are_f32_from_f32_logits(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, fused: bool
) -> None:
    if not fused:
        monkeypatch.setattr(Head, "_fused", lambda self: None)
    monkeypatch.setattr(head, "SOFTMAX_LOGITS", 3 * 400 + 1)
    monkeypatch.setattr(head, "HEAD_ROWS", 64)
    model = make(name).to(dtype)
    if name == "phi":
        torch.nn.init.normal_(model.lm_head.bias)
    made = Head(model)
    hidden = torch.randn(11, 32, generator=torch.Generator().manual_seed(3)).to(dtype) * 2
    targets = torch.arange(11) * 30
    with torch.inference_mode():
        assert made.learn(torch.tensor([[1, 2]]))
        got = made.log_probs(hidden, targets)
        weight = model.lm_head.weight.double()
        bias = getattr(model.lm_head, "bias", None)
        bias = torch.zeros(400).double() if bias is None else bias.double()
        logits = hidden.double() @ weight.T + bias
        sizes = (hidden.double().abs() @ weight.abs().T + bias.abs()).amax(-1)
        config = model.config.to_dict()
        naive = logits.to(dtype)
        for change in (lambda x: x / config.get("logits_scaling", 1.0),):
            logits, naive = change(logits), change(naive)
        if cap := config.get("final_logit_softcapping"):
            logits, naive = (cap * torch.tanh(x / cap) for x in (logits, naive))
        exact = torch.log_softmax(logits, -1)[torch.arange(11), targets]
        rounded = torch.log_softmax(naive, -1)[torch.arange(11), targets]
    # Worst case in f32: a logit sums 32 products and a bias, and the log-prob moves by twice as
    # much; the sum has 400 terms, and each step rounds numbers of a logit's size.
    bound = HALF_ULP * (2 * (32 + 3) * sizes + 400 + 24 * logits.abs().amax(-1))
    assert got.dtype == torch.float32
    assert ((got.double() - exact).abs() <= bound).all()
    if made._kernel is None:
        assert made._buffer is not None
        assert made._buffer.numel() == 3 * 400
    else:
        assert fused
        assert made._buffer is None
    if dtype != torch.float32:  # a log-softmax of half-precision logits would have been seen
        assert ((rounded.double() - exact).abs() > bound).any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_are_packed(plan: TokenPlan, dtype: torch.dtype) -> None:
    model = make("mistral").to(dtype)
    scorer = Scorer(model, plan)
    got = scorer.run()
    assert scorer.path == "packed"
    check = scorer.check
    assert check is not None
    assert check.difference <= check.bound
    # The same measure of roundings: both are evaluations of the same half-precision model.
    assert np.abs(got - Scorer(model, plan, path="exact").run()).max() <= check.bound
    assert check.bound < 1


def test_the_model_is_its_own_again_after_a_failure(plan: TokenPlan) -> None:
    model = make("gemma2")
    before = dict(vars(model.config))
    scorer = Scorer(model, plan)

    def fail(done: int, total: int) -> None:
        assert model.config._attn_implementation == "avops_tree"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scorer.run(fail)
    assert vars(model.config) == before
    assert "forward" not in model.lm_head.__dict__
    assert attention._LAYOUT.get() is None


def test_many_candidates_leave_nothing_behind(traps: TokenPlan) -> None:
    model = make("qwen3")
    scorer = Scorer(model, traps, batch_tokens=60)

    def candidate(scale: float) -> tuple[Any, ...]:
        with torch.no_grad():
            model.model.layers[0].mlp.up_proj.weight.mul_(scale)
        scorer.run()
        gc.collect()
        tensors = [x for x in gc.get_objects() if issubclass(type(x), torch.Tensor)]
        made = (id(scorer._head._kernel), id(scorer._head._buffer))
        return len(tensors), sum(x.numel() for x in tensors), made

    candidate(1.5)
    second = candidate(0.5)
    assert [candidate(scale) for scale in (2.0, 0.7, 1.1)] == [second] * 3


def test_the_sample_of_the_self_check() -> None:
    plan = plan_of([[60, 61], [60, 62]], [list(range(50, 80)), [9, *range(100, 120)]])
    sample = draw(plan)
    assert sample.ids.shape[0] == 4
    assert len({tuple(row) for row in sample.ids.tolist()}) == 4
    for row in sample.ids.tolist():
        assert row[:PREFIX] == QUERY[:PREFIX]
    assert sample.block.tree.ids.size < sample.ids[:, :-1].size
    one = draw(plan_of([[60]]))  # nothing to branch: still a sequence
    assert one.ids.tolist() == [[*QUERY[:PREFIX], 60]]
