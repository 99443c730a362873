"""Which models are taken, and which are refused: by name, with what to do."""

from __future__ import annotations

import json
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from avops.dtypes import BF16, F16
from avops.errors import AvopsError, MismatchError, RecipeError, UserError
from avops.kernels import effective
from avops.knobs import Knobs, load
from avops.knobs.mapped import MappedVector
from avops.recipe import round_f32
from avops.stream import MergeOptions
from knobs.toy import DTYPES, LAMS, Toy, World, bits, differing, make


@pytest.mark.parametrize("kind", DTYPES)
@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("rounding", ["nearest", "dither"])
def test_dtypes_shards_rules_and_rounding(
    tmp_path: Path, kind: str, shards: int, rounding: str
) -> None:
    world = make(tmp_path, kind, shards=shards)
    rules = {"where": ["med:layers.*=1/3", "embed*=-.5"], "skip": ["*.bias"]}
    options = MergeOptions(rounding=rounding, seed=11)
    for dtype in (None, torch.float32):
        model = world.model(dtype)
        knobs = Knobs(
            model, world.avs, base=world.base, rounding=rounding, seed=11,
            where=rules["where"], skip=rules["skip"],
        )  # fmt: skip
        for lams in (LAMS, {"med": "1/3", "low": 2}):
            knobs.set(lams)
            assert not differing(model, world.merged(lams, options=options, **rules))
        knobs.set()
        assert not differing(model, world.merged({}))
    assert knobs.residency["cpu"].kind == "disk"
    assert "combined on the CPU, in place from the page cache" in str(knobs.residency["cpu"])


@pytest.mark.parametrize(
    ("kind", "dtype", "written"),
    [("f32", torch.bfloat16, BF16), ("f32", torch.float16, F16), ("bf16", torch.float16, F16)],
)
@pytest.mark.parametrize("rounding", ["nearest", "dither"])
def test_a_model_in_another_dtype_holds_what_merge_writes_in_it(
    tmp_path: Path, kind: str, dtype: torch.dtype, written: object, rounding: str
) -> None:
    world = make(tmp_path, kind)
    model = world.model(dtype)
    knobs = Knobs(model, world.avs, base=world.base, rounding=rounding)
    options = MergeOptions(dtype=written, rounding=rounding)  # type: ignore[arg-type]
    for lams in (LAMS, {}):
        knobs.set(lams)
        assert not differing(model, world.merged(lams, options=options))


@pytest.mark.parametrize("rules", [[], ["layers.*=.25"]])
@pytest.mark.parametrize("rounding", ["nearest", "dither"])
def test_counts_and_effective_lam_are_those_of_merge(
    world: World, monkeypatch: pytest.MonkeyPatch, rules: list[str], rounding: str
) -> None:
    monkeypatch.setattr(effective, "STRIDE", 13)
    monkeypatch.setattr(effective, "SAMPLE", 4)
    knobs = Knobs(world.model(), world.avs, base=world.base, rounding=rounding, where=rules)
    lams = {"med": 0.1, "fin": -1.25, "low": 0.01}
    knobs.set(lams)
    world.merged(lams, where=rules, options=MergeOptions(rounding=rounding))
    (path,) = world.directory.glob("*.avops_recipe.json")
    measured = json.loads(path.read_text())["measured"]
    assert list(knobs.effective.values()) == measured["effective_lam"]
    assert abs(measured["effective_lam"][0] - 0.1) > 1e-4  # It says something.
    for name in ("elements", "unchanged", "overflowed", "flushed"):
        assert getattr(knobs.counts, name) == measured[name]
    assert knobs.counts.unchanged_share == measured["unchanged"] / measured["elements"]
    knobs.set()
    assert knobs.effective == {"med": None, "fin": None, "low": None}
    assert knobs.counts.elements == 0
    assert knobs.counts.unchanged_share is None


def test_a_factor_is_applied_to_the_exact_coefficient(tmp_path: Path) -> None:
    """655.36 · 1/3 rounded once is not f32(655.36) · 1/3; ``at`` comes back to the exact one."""
    exact, rounded = Fraction("655.36"), Fraction(float(np.float32(655.36)))
    assert round_f32(exact / 3) != round_f32(rounded / 3)
    world = make(tmp_path, "f32")
    model = world.model()
    knobs = Knobs(model, world.avs, base=world.base, where=["*=1/3"])
    expected = world.merged({"fin": 655.36}, where=["*=1/3"])
    assert differing(model, expected)
    for lam in (655.36, "655.36", exact, Decimal("655.36")):
        knobs.set(fin=lam)
        assert not differing(model, expected)
        with knobs.at(med=1):
            pass
        assert not differing(model, expected)
        knobs.set()
    knobs.set(knobs.state | {"fin": np.float32(655.36)})
    assert differing(model, expected)


def test_pieces_of_low_rank_terms_are_dithered_as_the_whole(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MappedVector, "chunk", 50)
    model = world.model()
    Knobs(model, world.avs, base=world.base, rounding="dither", seed=3).set(LAMS)
    options = MergeOptions(rounding="dither", seed=3)
    assert not differing(model, world.merged(LAMS, options=options))


def test_rules_that_say_nothing_are_refused(world: World) -> None:
    for rules, said in {
        ("layer.*=1",): r"rule layer.\*=1: the pattern matches none of the \d+ floating tensors",
        ("mde:*=1",): "no term has this name; did you mean med",
        ("med",): r"--where med: expected \[AV:\]GLOB=FACTOR",
    }.items():
        with pytest.raises(RecipeError, match=said):
            Knobs(world.model(), world.avs, base=world.base, where=rules)
    with pytest.raises(UserError, match=r"skip is '\*norm\*', expected a list"):
        Knobs(world.model(), world.avs, base=world.base, skip="*norm*")
    with pytest.raises(UserError, match="rounding is 'up', expected one of nearest, dither"):
        Knobs(world.model(), world.avs, base=world.base, rounding="up")
    with pytest.raises(UserError, match="residency is 'here', expected one of auto, device"):
        Knobs(world.model(), world.avs, base=world.base, residency="here")
    with pytest.raises(TypeError, match="rouding"):
        Knobs(world.model(), world.avs, base=world.base, rouding="up")  # type: ignore[call-arg]


def test_training_mode_is_refused(world: World) -> None:
    model = world.model().train()
    with pytest.raises(UserError, match=r"the Toy is in training mode.*call model.eval\(\) first"):
        Knobs(model, world.avs, base=world.base)
    knobs = Knobs(model.eval(), world.avs, base=world.base)
    with knobs.at(fin=1):
        model.train()
        with pytest.raises(UserError, match="training mode"):
            knobs.set(med=1)
    assert not differing(model, world.merged({}))


def test_parameters_may_require_gradients(world: World) -> None:
    model = world.model()
    assert all(parameter.requires_grad for parameter in model.parameters())
    Knobs(model, world.avs, base=world.base).set(LAMS)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not differing(model, world.merged(LAMS))


def test_integers_and_buffers_that_the_base_lacks_stay(world: World) -> None:
    model = world.model()
    model.ids += 3
    model.register_buffer("more", torch.ones(2))
    Knobs(model, world.avs, base=world.base).set(LAMS)
    assert model.ids.tolist() == [3, 4, 5, 6, 7]
    assert model.more.tolist() == [1, 1]
    assert bits(model.scale) == bits(world.merged(LAMS)["scale"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16])
def test_tensors_without_elements(tmp_path: Path, dtype: torch.dtype) -> None:
    """Alone of their dtype, too: then there is no memory to stage them in."""
    model = torch.nn.Module().eval()
    model.weight = torch.nn.Parameter(torch.zeros(0, 4, dtype=dtype))
    for name in ("base", "a"):
        save_file({"weight": torch.zeros(0, 4).bfloat16()}, tmp_path / f"{name}.safetensors")
    avs = {"a": tmp_path / "a.safetensors"}
    knobs = Knobs(model, avs, base=tmp_path / "base.safetensors")
    knobs.set(a=1)
    assert knobs.counts.elements == 0
    assert knobs.effective == {"a": None}


def test_memory_that_is_not_contiguous_is_refused(world: World) -> None:
    model = world.model()
    model.head.weight = torch.nn.Parameter(torch.empty(16, 37).to(world.dtype).T)
    with pytest.raises(MismatchError, match=r"'head.weight' is .* on cpu, not contiguous, but"):
        Knobs(model, world.avs, base=world.base)


def test_sharded_parameters_are_refused(world: World) -> None:
    from torch.distributed.tensor import DeviceMesh, Replicate, distribute_tensor

    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    try:
        model = world.model()
        mesh = DeviceMesh("cpu", [0])
        sharded = distribute_tensor(model.head.weight.detach(), mesh, [Replicate()])
        model.head.weight = torch.nn.Parameter(sharded)
        with pytest.raises(MismatchError, match=r"'head.weight' is a DTensor, .*FSDP, DTensor"):
            Knobs(model, world.avs, base=world.base)
    finally:
        torch.distributed.destroy_process_group()


def test_parameters_that_share_a_part_are_refused(world: World) -> None:
    model = world.model()
    memory = torch.empty(37 * 16 + 8, dtype=world.dtype)
    model.embed.weight = torch.nn.Parameter(memory[: 37 * 16].view(37, 16))
    model.head.weight = torch.nn.Parameter(memory[8:].view(37, 16))
    with pytest.raises(MismatchError, match=r"'embed.weight' and 'head.weight' share a part"):
        Knobs(model, world.avs, base=world.base)


def test_ties_and_names(tmp_path: Path) -> None:
    """Where a file holds both names of one parameter, rules and dither must not part them."""
    world = make(tmp_path)
    for path in (world.base, world.avs["fin"]):
        tensors = load_file(path)
        save_file({**tensors, "head.weight": tensors["embed.weight"].clone()}, path)
    model, avs = world.model(tied=True), {"fin": world.avs["fin"]}
    Knobs(model, avs, base=world.base).set(fin=1)
    Knobs(model, avs, base=world.base, where=["*=.5"]).set(fin=1)
    assert not differing(model, world.merged({"fin": 1}, where=["*=.5"]))
    knobs = Knobs(model, avs, base=world.base, where=["norm*=.1"])
    knobs.set(fin=0.1)
    world.merged({"fin": 0.1}, where=["norm*=.1"])
    path = max(world.directory.glob("*.avops_recipe.json"))
    # Of both names, as merge writes both.
    measured = json.loads(path.read_text())["measured"]
    assert list(knobs.effective.values()) == measured["effective_lam"]
    with pytest.raises(MismatchError, match="'head.weight' and 'embed.weight' differ in the rules"):
        Knobs(model, avs, base=world.base, where=["head*=.5"])
    with pytest.raises(MismatchError, match="would be dithered apart, each by its name"):
        Knobs(model, avs, base=world.base, rounding="dither")


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_models(world: World, backend: str) -> None:
    """Storage never moves, so what was compiled before and after follows."""
    torch._dynamo.reset()
    plain, model = world.model(), world.model()
    before = torch.compile(model, backend=backend)
    ids = torch.arange(9)
    load(plain, world.base)
    load(model, world.base)
    with torch.no_grad():
        first = before(ids)
        assert torch.equal(first, plain(ids))
        knobs = Knobs(before, world.avs, base=world.base)
        part = world.model()
        part.layers[0] = torch.compile(part.layers[0], backend=backend)
        others = [Knobs(m, world.avs, base=world.base) for m in (plain, part)]
        for lams in ({"fin": 1}, {"med": -1}):
            for one in (knobs, *others):
                one.set(lams)
            found = before(ids)
            assert not torch.equal(found, first)
            assert torch.equal(found, plain(ids))
            assert torch.equal(found, part(ids))
        assert not differing(model, world.merged({"med": -1}))


def test_a_compiled_model_that_is_mixed_is_not_run(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(world.model(), backend="eager")
    knobs = Knobs(compiled, world.avs, base=world.base)
    compiled(torch.arange(3))

    def fail(_rows: object) -> None:
        raise RuntimeError("injected")

    write = knobs._write
    monkeypatch.setattr(knobs, "_write", fail)
    with pytest.raises(RuntimeError, match="injected"):
        knobs.set(fin=1)
    with pytest.raises(AvopsError, match="weights are mixed"):
        compiled(torch.arange(3))
    monkeypatch.setattr(knobs, "_write", write)
    knobs.set(fin=1)
    compiled(torch.arange(3))


def test_load_fills_a_model(world: World) -> None:
    model = Toy().to(world.dtype)
    seen: list[tuple[int, int]] = []
    load(model, world.base, progress=lambda done, total: seen.append((done, total)))
    assert not differing(model, world.merged({}))
    assert seen[-1][0] == seen[-1][1] == sum(p.nbytes for p in model.parameters()) + 2
