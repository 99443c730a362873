"""Fused layers: the oracle's numbers, only where they are known, and only what is scored."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from avops import kernels
from avops.kernels import extension
from avops.kernels.linear import native as products
from avops.score import Item, Items, Scorer, TokenPlan, encode_ids, fused, oracle_scores
from avops.score.blocks import cut_blocks
from avops.score.fused import Fused
from avops.score.head import Head
from avops.score.packed import PackedPath
from score.architectures import make
from score.bound import rounding_bound

HALF_ULP = 2.0**-24  # relative: S is rounded once, from f64 to f32
# Known modules of two layers: five norms, two MLPs, two attentions, the last layer; in Qwen3 two
# norms of query and key each.
SERVED = {"mistral": 10, "mistral-full": 10, "llama": 10, "qwen2": 10, "qwen2-window": 10,
          "qwen3": 14}  # fmt: skip
OTHERS = ("gemma2", "gemma3", "phi", "phi3", "gpt_neox", "cohere2")
pytestmark = pytest.mark.skipif(extension.NATIVE is None, reason=extension.REASON)


@pytest.fixture(params=[True, False], ids=["native products", "torch's products"])
def native_products(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whose matrix products fused layers take, whatever is faster here."""
    if request.param and not products.serves(torch.float32):
        pytest.skip("no native products on this processor")
    monkeypatch.setattr(fused, "_products", lambda _: request.param)
    return bool(request.param)


def fused_modules(model: Any) -> list[str]:
    """Classes of the modules whose forward is another at the moment."""
    return [type(module).__name__ for module in model.modules() if "forward" in vars(module)]


@pytest.mark.parametrize("name", [*SERVED, *OTHERS, "gpt2", "mixtral"])
def test_known_modules_alone_are_served(name: str, native_products: bool) -> None:
    model = make(name)
    made = Fused(model)
    with made.session(lambda *_: None):
        served = fused_modules(model)
    assert fused_modules(model) == []
    assert made.served == len(served)
    # GPT-2 has no linear layers but the head, and others of the same name are not torch's.
    linear = [type(part) is torch.nn.Linear for part in model.modules()].count(True) - 1
    assert served.count("Linear") == (linear if native_products else 0)
    assert made.served == SERVED.get(name, 0) + served.count("Linear")


@pytest.mark.parametrize("name", [*SERVED, *OTHERS])
def test_fused_or_not_the_bound_holds(
    name: str, plan: TokenPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make(name)
    truth = oracle_scores(model, plan)
    bound = rounding_bound(model, plan) + HALF_ULP * np.abs(truth)
    ways = [(True, True), (True, False), (False, False)] if name in SERVED else [(True, True)]
    for fuse, native in ways:
        if native and not products.serves(torch.float32):
            continue
        monkeypatch.setattr(fused, "_products", lambda _, native=native: native)
        scorer = Scorer(model, plan, path="packed")
        scorer._path = PackedPath(scorer._head, scorer.units, fuse=fuse)  # type: ignore[arg-type]
        got = scorer.run()
        assert (np.abs(got - truth) <= bound).all()
        assert (scorer._path.fused is not None) == fuse  # the self-check found no fault with it


@pytest.fixture(scope="module")
def stems() -> TokenPlan:
    """Seven items; four begin with the same 50 tokens, of these two with the same 75."""
    rng = np.random.default_rng(5)

    def drawn(count: int) -> list[int]:
        return rng.integers(5, 400, count).tolist()  # type: ignore[no-any-return]

    stem = drawn(50)
    longer = stem + drawn(25)
    queries = [drawn(9), stem + drawn(7), [*longer, 6], drawn(30), [*longer, 7, 8], stem, drawn(60)]
    levels = ("exp", "gen", "avd")
    entries = [Item("x", "q", dict.fromkeys(levels, "r"), n + 1) for n in range(len(queries))]
    items = Items("drawn", levels, tuple(entries))
    ids = [[query + drawn(5 + 9 * n) for n in range(3)] for query in queries]
    starts = [[len(query)] * 3 for query in queries]
    return encode_ids(items, ids, starts, score_eos=False)


def packed(head: Head, plan: TokenPlan, budget: int) -> np.ndarray:
    """The log-probs of all scored tokens, one after the other."""
    path = PackedPath(head, cut_blocks(plan, budget))
    found = np.full(int(plan.scored.sum()), np.nan, np.float32)
    with torch.inference_mode(), path.session():
        for unit in path.units:
            found[unit.slots] = path.score(unit)
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", list(SERVED))
def test_with_native_products_what_else_is_scored_changes_no_bit(
    name: str, dtype: torch.dtype, stems: TokenPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor do budget and threads: nothing is left whose sums depend on how many rows there are."""
    if not products.serves(dtype):
        pytest.skip("no native products on this processor")
    monkeypatch.setattr(fused, "_products", lambda _: True)
    head = Head(make(name).to(dtype))
    with torch.inference_mode():
        head.learn(torch.tensor([[1, 2]]))
    whole = packed(head, stems, 10_000)
    ends = np.cumsum(stems.scored.sum(1))
    before = torch.get_num_threads()
    try:
        for budget, threads in ((1, 1), (150, 2), (400, 3), (10_000, 7)):
            torch.set_num_threads(threads)
            assert np.array_equal(packed(head, stems, budget), whole)
    finally:
        torch.set_num_threads(before)
    each = np.split(whole, ends[:-1])
    for some in ([1], [2], [1, 2], [2, 4], [1, 5], [0, 3, 5], [1, 2, 4, 5], [4, 6]):
        got = packed(head, stems.part(some), 10_000)
        assert np.array_equal(got, np.concatenate([each[number] for number in some]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_native_linear_layers_take_what_torchs_take(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not products.serves(dtype):
        pytest.skip("no native products on this processor")
    monkeypatch.setattr(fused, "_products", lambda _: True)
    model = make("gpt_neox").to(dtype)
    layer = model.gpt_neox.layers[0].mlp.dense_h_to_4h
    rows = torch.randn(6, 64, generator=torch.Generator().manual_seed(1)).to(dtype)
    given = [rows[:, ::2], rows[::2, :32], rows[0, :32], rows[:, :32].view(2, 3, 32), rows[:0, :32]]
    want = [layer(x) for x in given]
    with Fused(model).session(lambda *_: None), torch.inference_mode():
        assert "forward" in vars(layer)
        got = [layer(input=x) for x in given]
        other = rows[:, :32].half()
        with pytest.raises(RuntimeError, match="same dtype|Half"):  # torch's own words
            layer(other)
    for x, one, two in zip(given, got, want, strict=True):
        assert one.shape == two.shape
        sizes = x.abs().float() @ layer.weight.abs().float().T + layer.bias.abs().float()
        # Two sums of 32 products and a bias, and for bf16 their roundings.
        bound = 2 * 34 * 2.0**-24 * sizes + (2.0**-7 * sizes if dtype == torch.bfloat16 else 0)
        assert ((one.float() - two.float()).abs() <= bound).all()
    with Fused(model).session(lambda *_: None):
        assert layer(given[0]).requires_grad


class Elsewhere(torch.Tensor):
    """Has no memory of its own, as quantised or distributed weights."""

    def __new__(cls, like: torch.Tensor) -> Elsewhere:
        return torch.Tensor._make_wrapper_subclass(cls, like.shape, dtype=like.dtype)  # type: ignore[attr-defined,no-any-return]

    @classmethod
    def __torch_dispatch__(
        cls, function: Any, types: Any, args: tuple[Any, ...], kwargs: Any = None
    ) -> Elsewhere:
        assert function is torch.ops.aten.detach.default  # which is how a Parameter is made
        return cls(args[0])


@pytest.mark.parametrize("where", ["weight", "bias"])
def test_weights_whose_values_are_elsewhere_are_left_alone(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused, "_products", lambda _: True)
    model = make("qwen2")
    attention, mlp = model.model.layers[0].self_attn, model.model.layers[0].mlp
    for parent, name in ((attention, "q_proj"), (mlp, "up_proj")):
        layer = getattr(parent, name)
        like = layer.weight if where == "weight" else torch.zeros(layer.out_features)
        setattr(layer, where, torch.nn.Parameter(Elsewhere(like), requires_grad=False))
    model.model.norm.weight = torch.nn.Parameter(Elsewhere(model.model.norm.weight), False)
    with Fused(model).session(lambda *_: None):
        for module in (attention, attention.q_proj, mlp, mlp.up_proj, model.model.norm):
            assert "forward" not in vars(module)
        assert ("forward" in vars(mlp.down_proj)) == products.serves(torch.float32)


def test_hooks_changes_and_other_types_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "_products", lambda _: False)
    model = make("llama")
    first, second = model.model.layers
    first.mlp.register_forward_hook(lambda *_: None)
    first.self_attn.q_proj.register_forward_pre_hook(lambda *_: None)
    second.mlp.act_fn = torch.nn.GELU()
    second.input_layernorm.double()
    with Fused(model).session(lambda *_: None):
        names = fused_modules(model)
        assert "forward" not in vars(first.mlp)
        assert "forward" not in vars(first.self_attn)
        assert "forward" not in vars(second.input_layernorm)
    assert sorted(set(names)) == ["LlamaAttention", "LlamaDecoderLayer", "LlamaRMSNorm"]
    assert len(names) == 6


class Other(torch.nn.Module):
    """Not transformers' own, whatever its name."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(32))
        self.variance_epsilon = 1e-6

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states


def test_a_class_of_the_same_name_is_not_known() -> None:
    model = make("llama")
    Other.__name__ = "LlamaRMSNorm"
    model.model.norm = Other()
    with Fused(model).session(lambda *_: None):
        known = [name for name in fused_modules(model) if name != "Linear"]
        assert len(known) == SERVED["llama"] - 1
        assert "forward" not in vars(model.model.norm)


@pytest.mark.parametrize("failing", ["wrong", "raising"])
def test_what_the_self_check_refuses_is_scored_without(
    failing: str, plan: TokenPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make("mistral")
    truth = oracle_scores(model, plan)

    def spoiled(x: torch.Tensor, weight: torch.Tensor, epsilon: float, **_: Any) -> torch.Tensor:
        if failing == "raising":
            raise TypeError("another version")
        return x * weight * 1.01

    monkeypatch.setattr(fused, "rms_norm", spoiled)
    scorer = Scorer(model, plan)
    got = scorer.run()
    assert scorer.path == "packed"
    assert isinstance(scorer._path, PackedPath)
    assert scorer._path.fused is None
    assert scorer.check is not None
    bound = scorer.check.bound  # of two evaluations in f32, over the whole plan
    assert np.abs(got - truth).max() <= bound < 0.01
    part = scorer.part([1])
    assert isinstance(part._path, PackedPath)
    assert part._path.fused is None
    assert np.abs(part.run() - truth[1]).max() <= bound


def test_the_last_mlp_computes_scored_rows_alone(
    plan: TokenPlan, native_products: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make("llama")
    path = PackedPath(Head(model), cut_blocks(plan, 4096))
    (block,) = path.units
    seen: list[int] = []
    name = "gated_mlp" if native_products else "swiglu"
    given = getattr(kernels, name)

    def counted(rows: torch.Tensor, *others: Any, **options: Any) -> torch.Tensor:
        seen.append(rows.shape[0])
        return given(rows, *others, **options)  # type: ignore[no-any-return]

    monkeypatch.setattr(fused, name, counted)
    with torch.inference_mode():
        path.head.learn(torch.tensor([[1, 2]]))
    with torch.inference_mode(), path.session():
        found = path.score(block)
        assert path.fused is not None
        scored = np.unique(block.rows).size
        assert seen == [block.tokens, scored]
        assert scored < block.tokens
        held = buffers(path.fused)
        assert any(held)
        assert np.array_equal(path.score(block), found)
        assert buffers(path.fused) == held


def buffers(made: Fused) -> list[int]:
    """Addresses and sizes of what lasts between two layers, and two runs."""
    workspace = made._workspace
    place = workspace.address(0) if workspace.nbytes else 0
    return [place, workspace.nbytes, *(room.data_ptr() for room in made._rooms)]


def test_weights_are_read_where_they_lie(plan: TokenPlan, native_products: bool) -> None:
    """A change in place between two runs is seen, as Knobs makes it."""
    model = make("qwen2")
    scorer = Scorer(model, plan)
    first = scorer.run()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "mlp" in name or "norm" in name:
                weight.mul_(1.25)
    second = scorer.run()
    assert scorer.check is not None
    bound = scorer.check.bound  # of two evaluations in f32
    assert np.abs(second - oracle_scores(model, plan)).max() <= bound
    assert np.abs(second - first).max() > 10 * bound


def test_a_cache_or_a_batch_takes_the_models_own_attention() -> None:
    model = make("mistral")
    ids = torch.arange(10, 26).view(2, 8)
    with torch.inference_mode():
        want = model(input_ids=ids, use_cache=False).logits
        with Fused(model).session(lambda *_: pytest.fail("not for a batch")):
            got = model(input_ids=ids, use_cache=False).logits
    # Two f32 evaluations of logits that are sums of 32 products of order 1, through two layers.
    assert (got - want).abs().max() <= 1e-5 * want.abs().max()
