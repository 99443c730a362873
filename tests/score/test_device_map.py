"""Models over several devices: what a map may be, hooks in between, and who must be where.

Two GPUs are stood in for by torch's fake tensors, which have a device and a shape and no numbers,
and refuse to compute over two devices.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from avops.errors import AvopsError, MismatchError, MissingExtraError, UserError
from avops.score import Scorer, TokenPlan, load_model, oracle_scores, save_model
from avops.score import model as loading
from avops.score.attention import Layout
from avops.score.blocks import cut_blocks
from avops.score.check import _Disturbed, _rounds
from avops.score.device_map import check_device_map, check_placed, devices_of
from avops.score.head import Change, Head, projecting
from avops.score.packed import PackedPath
from score.architectures import make
from score.bound import rounding_bound

accelerate = pytest.importorskip("accelerate")

Make = Callable[..., Any]
HALF_ULP = 2.0**-24  # relative: S is rounded once, from f64 to f32
NAMES = ["mistral", "gemma2", "qwen2", "gpt2", "granite"]
WHOLE = {"": "cpu"}
PARTS = {"model.embed_tokens": "cpu", "model.layers": "cpu", "model.norm": "cpu"} | {
    "model.rotary_emb": "cpu",
    "lm_head": "cpu",
}


@pytest.fixture(scope="module")
def directory(make_model: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mistral")
    save_model(path, make_model("mistral"))
    return path


def cut(model: Any, devices: tuple[Any, Any, Any]) -> dict[str, Any]:
    """A map: the first layer and all before it, the rest but the head, the head."""
    first, second, head = devices
    (layers,) = (
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList) and name.count(".") == 1
    )
    places = {f"{layers}.0": first, f"{layers}.1": second}
    for name, module in model.get_submodule(layers.partition(".")[0]).named_children():
        last = "norm" in name or name == "ln_f"
        path = f"{layers.partition('.')[0]}.{name}"
        if path != layers and [*module.parameters(), *module.buffers()]:
            places[path] = second if last else first
    return places | {"lm_head": head}


# ---- maps


@pytest.mark.parametrize("device_map", [WHOLE, PARTS, "auto", "sequential"])
def test_a_map_changes_no_weight(directory: Path, device_map: Any) -> None:
    if isinstance(device_map, str) and torch.cuda.is_available():
        pytest.skip("would take the GPU")
    want, got = load_model(directory), load_model(directory, device_map=device_map)
    assert devices_of(got) == ("cpu",)
    assert not got.training
    assert got.config.use_cache is False
    ours, theirs = dict(want.named_parameters()), dict(got.named_parameters())
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert all(tensor.data_ptr() % 64 == 0 for tensor in theirs.values())
    again = load_model(directory, device_map=device_map, weights=ours)
    assert all(torch.equal(ours[name], tensor) for name, tensor in again.named_parameters())


@pytest.mark.parametrize(
    ("device_map", "message"),
    [
        ("cuda:0", "'cuda:0': expected one of auto, balanced, balanced_low_0, sequential, or the"),
        ({}, "it is empty, expected the device of every module"),
        ({"": True}, "module '' is to be on True, expected the number of a CUDA device"),
        ({"": "nowhere"}, "is to be on 'nowhere', expected the number of a CUDA device"),
        ({"": -1}, "is to be on -1, expected"),
        ({"": 2}, "is to be on 2, but torch sees 2 CUDA devices; name devices that are there"),
        ({"": "cuda:7"}, "is to be on 'cuda:7', but torch sees 2 CUDA devices"),
        ({"a": "disk", "": 0}, "module 'a' is to be on 'disk', and accelerate would bring its"),
        ({"": "meta"}, "module '' is to be on 'meta', and accelerate would bring"),
        ({"a": 0, "b": "cpu"}, "module 'b' is to be on 'cpu', and accelerate would bring"),
    ],
)
def test_maps_that_are_none(
    device_map: Any, message: str, monkeypatch: pytest.MonkeyPatch, directory: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError) as caught:
        load_model(directory, device_map=device_map)
    assert message in str(caught.value)


def test_maps_that_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    given: Mapping[str, int | str] = {"a": 0, "b": "cuda:1", "c": "cuda"}
    assert check_device_map(given) == given
    assert check_device_map("balanced_low_0") == "balanced_low_0"


def test_without_accelerate(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "accelerate" else find(name)
    )
    with pytest.raises(MissingExtraError, match=r"a device_map needs the package 'accelerate'"):
        load_model(directory, device_map="auto")


def test_a_map_of_another_model(directory: Path) -> None:
    with pytest.raises(MismatchError) as caught:
        load_model(directory, device_map={"transformer.h.0": "cpu"} | WHOLE)
    assert "names 1 modules that hold nothing in this model: transformer.h.0;" in str(caught.value)
    assert "expected names such as model.embed_tokens" in str(caught.value)
    with pytest.raises(MismatchError) as caught:
        load_model(directory, device_map={"model": "cpu"})
    assert "no device to 1 tensors of this model: lm_head.weight; name" in str(caught.value)


def test_tied_weights_stay_together() -> None:
    model = make("qwen2")
    with pytest.raises(MismatchError) as caught:
        check_placed(model, {"": 0, "lm_head": 1}, "base")
    assert "device_map puts lm_head.weight on 1 and model.embed_tokens.weight on 0, which are" in (
        str(caught.value)
    )
    check_placed(model, {"": 1, "lm_head": 0, "model.embed_tokens": 0}, "base")
    check_placed(make("mistral"), {"": 0, "lm_head": 1}, "base")


def test_what_transformers_would_leave_to_the_disk(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ``auto`` does where a model is too large: found after loading."""
    monkeypatch.setattr(loading, "check_device_map", lambda _: PARTS | {"model.norm": "disk"})
    with pytest.raises(UserError) as caught:
        load_model(directory, device_map="auto")
    assert "device_map 'auto' leaves 1 parts to the CPU or to disk (model.norm), expected all" in (
        str(caught.value)
    )
    assert "use more or larger GPUs, or the dtype bf16" in str(caught.value)


def test_what_has_no_memory(make_model: Make) -> None:
    """Offloaded to the CPU, as where a model does not fit on the GPUs."""
    model = accelerate.cpu_offload(make_model("mistral"), execution_device="cpu")
    with pytest.raises(UserError, match=r"leaves 21 parts .*\(model.embed_tokens.weight, .*, …\)"):
        check_placed(model, "auto", "base")
    model.hf_device_map = {"model": 0, "lm_head": "cpu"}
    with pytest.raises(UserError, match=r"leaves 1 parts to the CPU or to disk \(lm_head\)"):
        check_placed(model, "auto", "base")


# ---- hooks


@pytest.mark.parametrize("path", ["packed", "exact"])
@pytest.mark.parametrize("name", ["mistral", "gemma2", "qwen2", "gpt2"])
def test_hooks_change_no_bit(
    name: str, path: str, plan: TokenPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "avops.score.fused._serves", lambda *_: False
    )  # what has hooks is not fused
    alone, hooked = make(name), make(name)
    accelerate.dispatch_model(hooked, cut(hooked, ("cpu",) * 3), force_hooks=True)
    assert hasattr(hooked.get_output_embeddings(), "_hf_hook")
    scorer = Scorer(hooked, plan, path="auto" if path == "packed" else path)
    assert (scorer.run() == Scorer(alone, plan, path=path).run()).all()
    assert scorer.path == path
    assert hooked.get_output_embeddings().forward.__name__ == "forward"
    assert (scorer.run() == Scorer(alone, plan, path=path).run()).all()  # hooks are as before


# ---- two devices


def fake(model: Any, devices: tuple[str, str, str]) -> Any:
    """``model`` without numbers, cut and hooked as accelerate would, within a FakeTensorMode."""
    places = cut(model, devices)
    for name, module in model.named_modules():
        own = next((d for k, d in places.items() if f"{name}.".startswith(f"{k}.")), None)
        for held in (module._parameters, module._buffers):
            for key, tensor in held.items():
                if tensor is not None:
                    there = torch.empty(tensor.shape, dtype=tensor.dtype, device=own)
                    whole = held is module._parameters
                    held[key] = torch.nn.Parameter(there) if whole else there
    accelerate.hooks.attach_align_device_hook_on_blocks(
        model,
        execution_device=places | {"": devices[0]},
        offload=dict.fromkeys(places, False),
        skip_keys=model._skip_keys_device_placement,
    )
    return model


def getitem(tensor: torch.Tensor, key: Any) -> torch.Tensor:
    """``tensor[key]`` of a fake CUDA tensor, which a torch without CUDA can make but not index."""
    if not tensor.is_cuda:
        return torch._C.TensorBase.__getitem__(tensor, key)
    keys = list(key) if isinstance(key, tuple) else [key]
    if Ellipsis in keys:
        at, real = keys.index(Ellipsis), sum(k is not None for k in keys) - 1
        keys[at : at + 1] = [slice(None)] * (tensor.ndim - real)
    dim = 0
    for k in keys:
        if isinstance(k, int):
            tensor = tensor.select(dim, k)
            continue
        if k is None:
            tensor = tensor.unsqueeze(dim)
        else:
            tensor = torch.ops.aten.slice.Tensor(tensor, dim, k.start, k.stop, k.step or 1)
        dim += 1
    return tensor


def setitem(tensor: torch.Tensor, key: Any, value: torch.Tensor) -> None:
    assert (value.device, value.shape) == (tensor.device, getitem(tensor, key).shape)


@pytest.fixture
def indexing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "__getitem__", getitem)
    monkeypatch.setattr(torch.Tensor, "__setitem__", setitem)


@pytest.mark.skipif(torch.backends.cuda.is_built(), reason="torch would look for the GPUs")
@pytest.mark.usefixtures("indexing")
@pytest.mark.parametrize("head", ["cuda:0", "cuda:1", "cuda:2"])
@pytest.mark.parametrize("name", NAMES)
def test_every_tensor_is_where_it_is_used(
    name: str, head: str, plan: TokenPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    masks = set()
    mask = Layout.mask

    def spy(self: Layout, piece: Any, window: int | None, query: torch.Tensor) -> torch.Tensor:
        made = mask(self, piece, window, query)
        masks.add(str(made.device))
        return made

    monkeypatch.setattr(Layout, "mask", spy)
    monkeypatch.setattr(Head, "_fused", lambda _: None)  # a kernel would look for numbers
    # Tensors are where they belong already, and accelerate cannot make fake ones.
    monkeypatch.setattr(accelerate.hooks, "set_module_tensor_to_device", lambda *_, **__: None)
    model = make(name)
    block = cut_blocks(plan, 4096)[0]
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        path = PackedPath(Head(fake(model, ("cuda:0", "cuda:1", head))), [block])
        path.head.change = Change()
        with path.session():
            values, windows = path.run(block)
        assert (str(values.device), values.shape) == (head, block.targets.shape)
        assert len(windows) == 2
        assert masks == {"cuda:0", "cuda:1"}
        rows = torch.arange(3, device="cuda:0")
        hidden = torch.empty(1, 5, 32, device="cuda:1")
        for dtype in (torch.float32, torch.bfloat16):  # the exact path's, without its masks
            weight = torch.empty(400, 32, dtype=dtype, device=head)
            path.head.module.weight = torch.nn.Parameter(weight)
            with projecting(path.head.module, rows, 5):
                logits = path.head.module(hidden)
            assert (str(logits.device), logits.shape) == (head, (1, 3, 400))


@pytest.mark.skipif(torch.backends.cuda.is_built(), reason="torch would look for the GPUs")
@pytest.mark.usefixtures("indexing")
def test_the_disturbed_way_follows_its_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "randint", lambda *_, **__: 3)  # a fake one has no number
    with FakeTensorMode(allow_non_fake_inputs=True):
        disturbed = _Disturbed()
        here, there = (torch.empty(5, device=f"cuda:{n}") for n in range(2))
        assert disturbed._sign(here).device == here.device
        assert disturbed._sign(there).device == there.device
        copy = here.to("cuda:1")
        assert not _rounds(torch.Tensor.to, copy, [here])
    narrow = torch.rand(5).to(torch.bfloat16)
    assert _rounds(torch.Tensor.to, narrow, [torch.rand(5)])


# ---- several GPUs: run on none so far


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("path", ["packed", "exact"])
@pytest.mark.parametrize("device_map", ["balanced", (0, 1, 1), (0, 1, 0), (1, 0, 0)])
@pytest.mark.parametrize("name", ["mistral", "gemma2", "gpt2"])
def test_two_gpus_are_within_the_bound_of_the_cpus_oracle(
    name: str,
    device_map: Any,
    path: str,
    plan: TokenPlan,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    model = make(name)
    first_and_head_part = not isinstance(device_map, str) and device_map[0] != device_map[2]
    if getattr(model.config, "tie_word_embeddings", False) and first_and_head_part:
        pytest.skip("its head is tied to its embedding")
    truth = oracle_scores(model, plan)
    bound = rounding_bound(model, plan) + HALF_ULP * np.abs(truth)
    save_model(tmp_path, model)
    if not isinstance(device_map, str):
        device_map = cut(model, device_map)
    over = load_model(tmp_path, device_map=device_map)
    assert isinstance(device_map, str) or set(devices_of(over)) == {"cuda:0", "cuda:1"}
    scorer = Scorer(over, plan, path=path)
    assert (np.abs(scorer.run() - truth) <= bound).all()


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_devices_that_are_too_small_are_refused(directory: Path) -> None:
    with pytest.raises(AvopsError, match="leave it to a GPU"):
        load_model(directory, device_map={"model": 0, "lm_head": "cpu"})
