"""Tied weights and tensors without a parameter: what a live model can hold, and what not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from adapters import save_by_hand
from avops.errors import MismatchError, RecipeError
from avops.knobs import Knobs


class Tied(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(5, 4)
        self.head = torch.nn.Linear(4, 5, bias=False)
        self.head.weight = self.embed.weight
        self.eval()


def files(directory: Path, aligned_head: torch.Tensor | None = None) -> tuple[Path, Path]:
    """A base that holds both names of the tied tensor, and an aligned checkpoint."""
    torch.manual_seed(0)
    weight, moved = torch.randn(5, 4), torch.randn(5, 4)
    head = moved if aligned_head is None else aligned_head
    save_file({"embed.weight": weight, "head.weight": weight.clone()}, directory / "b.safetensors")
    save_file({"embed.weight": moved, "head.weight": head.clone()}, directory / "a.safetensors")
    return directory / "b.safetensors", directory / "a.safetensors"


def test_tied_weights_are_set_once(tmp_path: Path) -> None:
    model = Tied()
    base, aligned = {"embed.weight": torch.randn(5, 4)}, {"embed.weight": torch.randn(5, 4)}
    save_file(base, tmp_path / "b.safetensors")
    save_file(aligned, tmp_path / "a.safetensors")
    knobs = Knobs(model, {"a": tmp_path / "a.safetensors"}, base=tmp_path / "b.safetensors")
    knobs.set(a=0.5)
    start = base["embed.weight"]
    expected = start + torch.tensor(0.5) * (aligned["embed.weight"] - start)
    assert torch.equal(model.head.weight, expected)
    assert model.head.weight.data_ptr() == model.embed.weight.data_ptr()


def test_both_names_of_a_tied_tensor(tmp_path: Path) -> None:
    base, aligned = files(tmp_path)
    model = Tied()
    knobs = Knobs(model, {"a": aligned}, base=base)
    knobs.set(a=0.5)
    assert model.head.weight.data_ptr() == model.embed.weight.data_ptr()


def test_tied_tensors_that_move_apart_are_refused(tmp_path: Path) -> None:
    """The merged file would hold two different tensors; the model has one."""
    base, aligned = files(tmp_path, aligned_head=torch.zeros(5, 4))
    with pytest.raises(MismatchError, match=r"'head.weight' and 'embed.weight' differ in AV a"):
        Knobs(Tied(), {"a": aligned}, base=base)


@pytest.mark.parametrize("moved", [False, True])
def test_a_tensor_without_a_parameter(tmp_path: Path, moved: bool) -> None:
    """An old buffer in the file does no harm, unless a vector changes it."""
    model = torch.nn.Linear(3, 2, bias=False).eval()
    base = {"weight": torch.randn(2, 3), "rotary.inv_freq": torch.ones(4)}
    aligned = {"weight": torch.randn(2, 3), "rotary.inv_freq": torch.ones(4) + float(moved)}
    save_file(base, tmp_path / "b.safetensors")
    save_file(aligned, tmp_path / "a.safetensors")
    if moved:
        with pytest.raises(MismatchError, match=r"'rotary.inv_freq' has no parameter.*AV a change"):
            Knobs(model, {"a": tmp_path / "a.safetensors"}, base=tmp_path / "b.safetensors")
        return
    knobs = Knobs(model, {"a": tmp_path / "a.safetensors"}, base=tmp_path / "b.safetensors")
    knobs.set(a=1)
    assert torch.equal(model.weight, base["weight"] + (aligned["weight"] - base["weight"]))


@pytest.mark.parametrize("value", [1e39, "0.5x", None, float("inf")])
def test_values_that_are_no_coefficient(tmp_path: Path, value: object) -> None:
    base, aligned = files(tmp_path)
    knobs = Knobs(Tied(), {"a": aligned}, base=base)
    with pytest.raises(RecipeError, match=r"dial a: λ is .*, expected a number that is finite"):
        knobs.set(a=value)  # type: ignore[arg-type]


def test_weights_changed_from_outside_are_set_again(tmp_path: Path) -> None:
    base, aligned = files(tmp_path)
    model = Tied()
    knobs = Knobs(model, {"a": aligned}, base=base)
    knobs.set(a=0.5)
    before = model.embed.weight.detach().clone()
    with torch.no_grad():
        model.embed.weight.zero_()
    knobs.set(a=0.5)
    assert torch.equal(model.embed.weight, before)


def adapter(directory: Path, *modules: str) -> Path:
    """The same difference for each of ``modules`` of the tied model: embedding or head."""
    generator = torch.Generator().manual_seed(1)
    a, b = torch.randn(2, 4, generator=generator), torch.randn(5, 2, generator=generator)
    tensors = {}
    if "head" in modules:
        tensors |= {"head.lora_A.weight": a, "head.lora_B.weight": b}
    if "embed" in modules:
        tensors |= {"embed.lora_embedding_A": b.T, "embed.lora_embedding_B": a.T}
    arrays = {name: tensor.contiguous().numpy() for name, tensor in tensors.items()}
    return save_by_hand(directory, arrays)


def test_an_adapter_that_moves_both_names_alike(tmp_path: Path) -> None:
    base, _ = files(tmp_path)
    model = Tied()
    knobs = Knobs(model, {"a": adapter(tmp_path / "both", "head", "embed")}, base=base)
    before = model.head.weight.detach().clone()
    knobs.set(a=1)
    assert not torch.equal(model.head.weight, before)
    assert model.head.weight.data_ptr() == model.embed.weight.data_ptr()


@pytest.mark.parametrize("module", ["head", "embed"])
def test_an_adapter_that_moves_one_name_is_refused(tmp_path: Path, module: str) -> None:
    base, _ = files(tmp_path)
    with pytest.raises(MismatchError, match=r"'head.weight' and 'embed.weight' differ in AV a"):
        Knobs(Tied(), {"a": adapter(tmp_path / "one", module)}, base=base)


def test_an_adapter_of_a_tensor_without_a_parameter(tmp_path: Path) -> None:
    model = torch.nn.Linear(4, 5, bias=False).eval()
    base = {"weight": torch.randn(5, 4), "head.weight": torch.ones(5, 4)}
    save_file(base, tmp_path / "b.safetensors")
    with pytest.raises(MismatchError, match=r"'head.weight' has no parameter.*AV a changes it"):
        Knobs(model, {"a": adapter(tmp_path / "a", "head")}, base=tmp_path / "b.safetensors")
