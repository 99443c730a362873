"""A live model cut by a device_map: the same weights, the same scores, one device to say."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from avops import Knobs
from avops.errors import MismatchError, UserError
from avops.recipe import Source, Term, parse_lam
from avops.score import load_model
from avops.search import Evaluator, LiveModel, Opened, Setup
from small_project import SmallProject

accelerate = pytest.importorskip("accelerate")

MED = Source("med", "avs/med.safetensors")
FIN = Source("fin", "aligned/fin.safetensors")
TERMS = tuple(Term(s, parse_lam(lam, "test"), lam) for s, lam in ((MED, "-1"), (FIN, ".5")))
WHOLE = {"": "cpu"}
PARTS = ("model.embed_tokens", "model.layers", "model.norm", "model.rotary_emb", "lm_head")


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


@pytest.mark.parametrize("base", ["base.safetensors", "hf"])
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_weights_are_those_without_a_map(project: SmallProject, base: str, dtype: str) -> None:
    opened = Opened.of(base, (MED, FIN))
    want = LiveModel(opened, "cpu", dtype=dtype)
    got = LiveModel(opened, device_map=WHOLE, dtype=dtype)
    assert (got.device, got.dtype) == ("cpu", dtype)
    for terms in (TERMS, (), TERMS[:1]):
        want.set(terms)
        got.set(terms)
        assert same(weights(want.model), weights(got.model))
    ours, theirs = (dict(live.model.named_buffers()) for live in (want, got))
    assert same(ours, theirs)


def test_scores_are_those_without_a_map(project: SmallProject) -> None:
    setup: dict[str, Any] = {"base": "base.safetensors", "sources": (MED, FIN)}
    setup |= {"data": "items.jsonl", "limit": 2}
    want = Evaluator(Setup(**setup, device="cpu"))
    got = Evaluator(Setup(**setup, device_map=WHOLE))
    assert (got.evaluate(TERMS) == want.evaluate(TERMS)).all()
    assert got.device == "cpu"


def test_device_and_map_exclude_each_other(project: SmallProject) -> None:
    with pytest.raises(UserError, match=r"device cpu with a device_map: .*; leave one out"):
        LiveModel(Opened.of("base.safetensors", ()), "cpu", device_map=WHOLE)


def test_knobs_sets_what_has_hooks_and_refuses_what_is_elsewhere(project: SmallProject) -> None:
    plain, hooked, away = (load_model("hf") for _ in range(3))
    accelerate.dispatch_model(hooked, dict.fromkeys(PARTS, "cpu"), force_hooks=True)
    assert hasattr(hooked.lm_head, "_hf_hook")
    vectors = {"med": MED.path, "fin": FIN.path}
    for model in (plain, hooked):
        Knobs(model, vectors, base="base.safetensors").set(med=-1, fin=".5")
    assert same(weights(plain), weights(hooked))
    accelerate.cpu_offload(away, execution_device="cpu")
    with pytest.raises(MismatchError, match=r"on meta.*expected .* contiguous memory of a device"):
        Knobs(away, vectors, base="base.safetensors")


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_weights_over_two_gpus_are_the_cpus(project: SmallProject, dtype: str) -> None:
    places = {name: n // 2 % 2 for n, name in enumerate(PARTS)}
    opened = Opened.of("base.safetensors", (MED, FIN))
    want = LiveModel(opened, "cpu", dtype=dtype)
    got = LiveModel(opened, device_map=places, dtype=dtype)
    assert set(got.device.split(",")) == {"cuda:0", "cuda:1"}
    for terms in (TERMS, ()):
        want.set(terms)
        got.set(terms)
        found = {name: tensor.cpu() for name, tensor in weights(got.model).items()}
        assert same(weights(want.model), found)
