"""Knobs on a CUDA device: the bits of `avops merge`, nothing allocated, graphs and streams."""

from __future__ import annotations

import gc
import threading
from pathlib import Path

import pytest
import torch

from avops.errors import AvopsError, NonFiniteError
from avops.kernels import registry
from avops.knobs import Knobs, lanes, load
from avops.stream import MergeOptions
from knobs.toy import DTYPES, LAMS, Toy, World, differing, make

pytestmark = pytest.mark.gpu
RESIDENCIES = ("device", "pinned", "disk")
CUDA = torch.device("cuda", 0)


@pytest.fixture(params=["cuda", "triton"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    name: str = request.param
    row = next(r for r in registry.report() if (r.operation, r.backend) == ("combine_many", name))
    if not row.available:
        pytest.skip(f"{name}: {row.reason}")
    monkeypatch.setenv("AVOPS_BACKEND", name)
    return name


def on_gpu(world: World, dtype: torch.dtype | None = None) -> Toy:
    return world.model(dtype).to(CUDA)


def test_a_kernel_reaches_the_device() -> None:
    assert registry.resolve("combine_many", device="cuda").backend in ("cuda", "triton")


@pytest.mark.usefixtures("small_images")
@pytest.mark.parametrize("wide", [False, True], ids=["same dtype", "widened"])
@pytest.mark.parametrize("rounding", ["nearest", "dither"])
@pytest.mark.parametrize("residency", RESIDENCIES)
def test_the_bits_of_merge(
    world: World, backend: str, residency: str, rounding: str, wide: bool
) -> None:
    model = on_gpu(world, torch.float32 if wide else None)
    pointers = [p.data_ptr() for p in model.parameters()]
    knobs = Knobs(model, world.avs, base=world.base, residency=residency, rounding=rounding)
    assert knobs.residency["cuda:0"].kind == residency
    options = MergeOptions(rounding=rounding)
    for lams in (LAMS, {"fin": 0.3}, {"low": -1}, {}):
        knobs.set(lams)
        assert not differing(model, world.merged(lams, options=options))
    assert [p.data_ptr() for p in model.parameters()] == pointers


@pytest.mark.usefixtures("small_images")
@pytest.mark.parametrize("kind", DTYPES)
@pytest.mark.parametrize("residency", RESIDENCIES)
def test_dtypes_shards_and_rules(tmp_path: Path, kind: str, residency: str) -> None:
    world = make(tmp_path, kind, shards=3)
    rules = {"where": ["med:layers.*=1/3", "embed*=-.5"], "skip": ["*.bias"]}
    model = on_gpu(world)
    knobs = Knobs(
        model, world.avs, base=world.base, residency=residency,
        where=rules["where"], skip=rules["skip"],
    )  # fmt: skip
    knobs.set(LAMS)
    assert not differing(model, world.merged(LAMS, **rules))
    host = Knobs(world.model(), world.avs, base=world.base, **rules)  # type: ignore[arg-type]
    host.set(LAMS)
    assert knobs.counts == host.counts
    assert knobs.effective == host.effective


def test_small_models_stay_on_the_device(world: World) -> None:
    knobs = Knobs(on_gpu(world), world.avs, base=world.base)
    assert knobs.residency["cuda:0"].kind == "device"
    assert "GiB of device memory are free" in knobs.residency["cuda:0"].reason


@pytest.mark.usefixtures("small_images")
@pytest.mark.parametrize("wide", [False, True], ids=["same dtype", "widened"])
@pytest.mark.parametrize("residency", RESIDENCIES)
def test_nothing_is_allocated_after_the_first_time(
    world: World, backend: str, residency: str, wide: bool
) -> None:
    model = on_gpu(world, torch.float32 if wide else None)
    knobs = Knobs(model, world.avs, base=world.base, residency=residency)
    knobs.set(LAMS)
    gc.collect()

    def taken() -> tuple[int, int]:
        torch.cuda.synchronize()
        free, _ = torch.cuda.mem_get_info()
        return torch.cuda.memory_stats()["allocation.all.allocated"], -free

    grown = []
    for sign in (-1, 1, -1):
        before = taken()
        knobs.set({name: sign * lam for name, lam in LAMS.items()})
        grown.append([after - start for start, after in zip(before, taken(), strict=True)])
    assert all(allocated == 0 for allocated, _ in grown)
    # What another process takes of the device shows once, what a set takes shows every time.
    assert any(gone <= 0 for _, gone in grown)


@pytest.mark.usefixtures("small_images")
@pytest.mark.parametrize("residency", RESIDENCIES)
def test_a_captured_graph_follows(world: World, residency: str) -> None:
    """Replays are compared with a graph of the same forward, captured of the merged weights."""
    ids = torch.arange(9, device=CUDA)
    model = on_gpu(world)
    knobs = Knobs(model, world.avs, base=world.base, residency=residency)
    graph, out = capture(model, ids)
    graph.replay()
    first = out.clone()
    knobs.set(LAMS)
    graph.replay()
    moved = out.clone()
    fresh = Toy().to(world.dtype)
    fresh.load_state_dict(world.merged(LAMS))
    other, expected = capture(fresh.to(CUDA), ids)
    other.replay()
    assert not torch.equal(moved, first)
    assert torch.equal(moved, expected)
    knobs.set()
    graph.replay()
    assert torch.equal(out, first)


def capture(model: Toy, ids: torch.Tensor) -> tuple[torch.cuda.CUDAGraph, torch.Tensor]:
    with torch.no_grad():
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                model(ids)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = model(ids)
    return graph, out


def test_setting_while_a_graph_is_captured_is_refused(world: World) -> None:
    model = on_gpu(world)
    knobs = Knobs(model, world.avs, base=world.base)
    knobs.set(fin=1)
    place = torch.zeros(3, device=CUDA).add_(1)  # its code is loaded before the capture
    torch.cuda.synchronize()
    with torch.cuda.graph(torch.cuda.CUDAGraph()):
        place.add_(1)
        with pytest.raises(AvopsError, match="while a CUDA graph is being captured"):
            knobs.set(med=1)
    assert knobs.state["fin"] == 1
    assert not differing(model, world.merged({"fin": 1}))


@pytest.mark.usefixtures("small_images")
@pytest.mark.parametrize("residency", RESIDENCIES)
def test_forwards_on_other_streams(world: World, residency: str) -> None:
    """What a forward on its own stream sees is one λ, whole: the lock is held while it is given."""
    model = on_gpu(world)
    knobs = Knobs(model, world.avs, base=world.base, residency=residency)
    recipes = [{"fin": 1}, {"med": 1}, {"low": 1}]
    expected = {}
    for lams in recipes:
        knobs.set(lams)
        expected[next(iter(lams))] = weights(model)
    torch.cuda.synchronize()
    seen: list[tuple[str, torch.Tensor]] = []
    over = threading.Event()

    def forwards() -> None:
        stream = torch.cuda.Stream()
        while not over.is_set():
            with knobs.lock, torch.cuda.stream(stream), torch.no_grad():
                name = next(name for name, lam in knobs.state.items() if lam)
                if len(seen) < 300:
                    seen.append((name, weights(model)))

    threads = [threading.Thread(target=forwards) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(10):
        for lams in recipes:
            knobs.set(lams)
    over.set()
    for thread in threads:
        thread.join()
    torch.cuda.synchronize()
    assert seen
    assert all(torch.equal(found, expected[name]) for name, found in seen)


def weights(model: Toy) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.mark.usefixtures("small_images")
@pytest.mark.parametrize("residency", ["auto", *RESIDENCIES])
def test_a_model_over_device_and_host(world: World, residency: str) -> None:
    model = world.model()
    model.embed.to(CUDA)
    model.layers[1].to(CUDA)
    knobs = Knobs(model, world.avs, base=world.base, residency=residency)
    assert set(knobs.residency) == {"cuda:0", "cpu"}
    assert knobs.residency["cpu"].kind == "disk"
    knobs.set(LAMS)
    assert not differing(model, world.merged(LAMS))
    host = Knobs(world.model(), world.avs, base=world.base)
    host.set(LAMS)
    assert knobs.counts == host.counts


@pytest.mark.usefixtures("small_images")
@pytest.mark.parametrize("residency", RESIDENCIES)
def test_values_that_are_not_finite_bring_back_what_was_there(world: World, residency: str) -> None:
    model = on_gpu(world)
    knobs = Knobs(model, world.avs, base=world.base, residency=residency)
    knobs.set(LAMS)
    with pytest.raises(NonFiniteError, match=r"would hold \d+ values .* at λ = low:3e\+38"):
        knobs.set(low=3e38)
    assert knobs.state["fin"] == -1.25
    assert not differing(model, world.merged(LAMS))


@pytest.mark.parametrize("wide", [False, True], ids=["same dtype", "widened"])
def test_without_a_kernel_for_the_device(
    world: World, monkeypatch: pytest.MonkeyPatch, wide: bool
) -> None:
    monkeypatch.setattr(lanes, "lane_of", lambda _device: None)
    model = on_gpu(world, torch.float32 if wide else None)
    knobs = Knobs(model, world.avs, base=world.base)
    assert "no kernel reaches cuda:0: combined on the CPU, then copied" in str(knobs.residency)
    knobs.set(LAMS)
    assert not differing(model, world.merged(LAMS))


def test_load_streams_to_the_device(world: World) -> None:
    model = on_gpu(world)
    load(model, world.base)
    assert not differing(model, world.merged({}))


def test_images_of_full_size(tmp_path: Path) -> None:
    """A tensor of several images, as in a real model: 160 MB, compared with the host's path."""
    from safetensors.torch import save_file

    torch.manual_seed(0)
    for name in ("b", "a"):
        tensors = {"weight": torch.randn(20_000, 4_000).to(torch.bfloat16)}
        save_file(tensors, tmp_path / f"{name}.safetensors")
    avs, base = {"a": tmp_path / "a.safetensors"}, tmp_path / "b.safetensors"

    def model(where: str) -> torch.nn.Module:
        made = torch.nn.Linear(4_000, 20_000, bias=False, dtype=torch.bfloat16, device=where)
        return made.eval()

    for rounding in ("nearest", "dither"):
        host = model("cpu")
        Knobs(host, avs, base=base, rounding=rounding).set(a=0.3)
        expected = host.weight.to(CUDA)
        for residency in RESIDENCIES:
            there = model("cuda")
            knobs = Knobs(there, avs, base=base, rounding=rounding, residency=residency)
            knobs.set(a=0.3)
            assert torch.equal(there.weight.view(torch.int16), expected.view(torch.int16))
