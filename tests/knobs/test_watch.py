"""A model that changed since Knobs was made: noticed before anything is written."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from avops.errors import AvopsError, CheckpointError
from avops.knobs import Knobs
from knobs.simulated import Simulated, use
from knobs.toy import LAMS, Toy, World, differing


def replaced(model: Toy) -> None:
    model.norm.weight = torch.nn.Parameter(torch.ones(16).to(model.norm.weight.dtype))


def moved(model: Toy) -> None:
    model.norm.weight.data = torch.ones(16).to(model.norm.weight.dtype)


def another_module(model: Toy) -> None:
    """Of another layer the names are the same, and the old module still holds what it held."""
    model.layers[1] = torch.nn.Linear(24, 16).to(model.norm.weight.dtype).eval()


def swapped(model: Toy) -> None:
    """Every parameter is still in the model, under another name."""
    model.norm.weight, model.norm.bias = model.norm.bias, model.norm.weight


def swapped_modules(model: Toy) -> None:
    model.layers[0], model.layers[1] = model.layers[1], model.layers[0]


def gone(model: Toy) -> None:
    del model.norm


def another_dtype(model: Toy) -> None:
    """At the same address, as an allocator may have it after two casts."""
    model.norm.weight.data = model.norm.weight.data.view(torch.float16)


def reshaped(model: Toy) -> None:
    model.layers[0].weight.data = model.layers[0].weight.data.view(16, 24)


def parametrized(model: Toy) -> None:
    torch.nn.utils.parametrizations.weight_norm(model.layers[0])


CHANGES = [
    Toy.float, replaced, moved, another_module, swapped, swapped_modules, gone, another_dtype,
    reshaped, parametrized,
]  # fmt: skip


@pytest.mark.parametrize("residency", ["auto", "device"])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_model_that_changed_is_noticed(
    world: World, monkeypatch: pytest.MonkeyPatch, change: Callable[[Toy], object], residency: str
) -> None:
    if residency != "auto":
        use(monkeypatch, Simulated())
    model = world.model()
    knobs = Knobs(model, world.avs, base=world.base, residency=residency)
    knobs.set(fin=1)
    change(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for look in (lambda: knobs.set(med=1), lambda: knobs.effective):
        with pytest.raises(AvopsError, match=r"is not where it was when Knobs was .* a new Knobs"):
            look()
    assert knobs.state["fin"] == 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_another_knobs_sets_it_then(world: World) -> None:
    model = world.model()
    Knobs(model, world.avs, base=world.base)
    model.float()
    Knobs(model, world.avs, base=world.base).set(fin=1)
    assert not differing(model, world.merged({"fin": 1}))


def test_strides_are_looked_at(tmp_path: Path) -> None:
    """A square matrix may be transposed where it is."""
    model = torch.nn.Linear(8, 8, bias=False).eval()
    save_file({"weight": torch.randn(8, 8)}, tmp_path / "b.safetensors")
    knobs = Knobs(model, {}, base=tmp_path / "b.safetensors")
    model.weight.data = model.weight.data.T
    with pytest.raises(AvopsError, match="'weight' is not where it was"):
        knobs.set()


def test_modules_may_be_wrapped(world: World) -> None:
    """By torch.compile, after Knobs was made: the tensors keep their names."""
    torch._dynamo.reset()
    model = world.model()
    knobs = Knobs(model, world.avs, base=world.base)
    model.layers[0] = torch.compile(model.layers[0], backend="eager")  # type: ignore[assignment]
    knobs.set(LAMS)
    expected = world.merged(LAMS)
    held = {name.replace("._orig_mod", ""): t for name, t in model.state_dict().items()}
    assert all(torch.equal(held[name], tensor) for name, tensor in expected.items())
    model.layers[0]._orig_mod = torch.nn.Linear(16, 24).to(world.dtype)  # type: ignore[assignment]
    with pytest.raises(AvopsError, match=r"'layers.0.\w+' is not where it was"):
        knobs.set(fin=1)


def test_a_module_that_took_over_the_tensor(world: World) -> None:
    """A new module with the old parameter is followed, and what it does later is noticed."""
    model = world.model()
    knobs = Knobs(model, world.avs, base=world.base)
    head = torch.nn.Linear(16, 37, bias=False).eval()
    head.weight = model.head.weight
    model.head = head
    knobs.set(LAMS)
    assert not differing(model, world.merged(LAMS))
    head.weight = torch.nn.Parameter(torch.zeros_like(head.weight))
    with pytest.raises(AvopsError, match=r"'head.weight' is not where it was"):
        knobs.set(fin=1)


def test_two_parameters_of_one_storage_are_tied(world: World) -> None:
    """Tied by their memory, not by one object."""
    model = world.model()
    model.head.weight = torch.nn.Parameter(model.embed.weight.data)
    for path in (world.base, world.avs["fin"]):
        tensors = load_file(path)
        tensors["head.weight"] = tensors["embed.weight"].clone()
        save_file(tensors, path, {"format": "pt"})
    knobs = Knobs(model, {"fin": world.avs["fin"]}, base=world.base)
    knobs.set(fin=0.5)
    assert not differing(model, world.merged({"fin": 0.5}))


def test_the_effective_lam_of_files_that_changed(world: World) -> None:
    """They are mapped: of one that was cut short nothing may be read."""
    knobs = Knobs(world.model(), world.avs, base=world.base)
    knobs.set(LAMS)
    os.truncate(world.base, 100)
    with pytest.raises(CheckpointError, match="changed while it was in use"):
        knobs.effective  # noqa: B018
    with pytest.raises(CheckpointError, match="changed while it was in use"):
        knobs.set(fin=1)
    assert knobs.state["fin"] == -1.25


def test_leaving_at_needs_the_files(world: World) -> None:
    """What was there before is computed anew: where that fails, the model keeps what it has."""
    model = world.model()
    knobs = Knobs(model, world.avs, base=world.base)
    expected = world.merged({"fin": 1})
    with pytest.raises(CheckpointError, match="changed while"), knobs.at(fin=1):
        os.truncate(world.avs["med"], 100)
    assert knobs.state["fin"] == 1
    assert not differing(model, expected)
