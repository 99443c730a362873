"""LoRA adapters as dials: the bits of `avops merge`, whatever the pieces they are computed in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from adapters import save_by_hand
from avops.errors import MismatchError, NonFiniteError, RecipeError
from avops.knobs import Knobs
from avops.knobs.mapped import MappedVector
from avops.recipe import Recipe, Sources, parse_terms
from avops.score import load_model
from avops.stream import extract, merge, plan_extract, plan_merge
from bits import bf16
from small_project import SmallProject

P = "base_model.model."
ATTENTION = f"{P}model.layers.0.self_attn.q_proj"
MLP = f"{P}model.layers.1.mlp.down_proj"


def adapter(directory: Path, seed: int = 0, *, whole: bool = True) -> Path:
    """Two low-rank matrices, a low-rank embedding, and (whole) a norm and the head."""
    rng = np.random.default_rng(seed)

    def draw(*shape: int) -> np.ndarray:
        return bf16(0.2 * rng.standard_normal(shape).astype(np.float32))

    tensors = {
        f"{ATTENTION}.lora_A.weight": draw(4, 32),
        f"{ATTENTION}.lora_B.weight": draw(32, 4),
        f"{MLP}.lora_A.weight": draw(3, 48),
        f"{MLP}.lora_B.weight": draw(32, 3),
        f"{P}model.embed_tokens.lora_embedding_A": draw(4, 260),
        f"{P}model.embed_tokens.lora_embedding_B": draw(32, 4),
    }
    if whole:
        tensors |= {f"{P}model.norm.weight": draw(32), f"{P}lm_head.weight": draw(260, 32)}
    return save_by_hand(directory, tensors, {"r": 4, "rank_pattern": {"down_proj": 3}})


def merged(specs: list[str], out: str) -> dict[str, torch.Tensor]:
    """What `avops merge` writes for the recipe."""
    terms = parse_terms(specs, Sources({}, lambda path: Path(path).exists()))
    merge(plan_merge(Recipe("base.safetensors", terms), Path(out)))
    return load_file(out)


def bits(tensors: dict[str, torch.Tensor]) -> dict[str, bytes]:
    return {
        n: t.detach().reshape(-1).view(torch.uint8).numpy().tobytes() for n, t in tensors.items()
    }


@pytest.mark.parametrize("chunk", [7, 1000, 1 << 20])
def test_the_bits_of_merge(
    project: SmallProject, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(MappedVector, "chunk", chunk)
    one, two = adapter(Path("one")), adapter(Path("two"), 1, whole=False)
    model = load_model(project.directory / "hf", dtype=torch.bfloat16)
    avs = {"med": "avs/med.safetensors", "one": one, "two": two, "fin": "aligned/fin.safetensors"}
    knobs = Knobs(model, avs, base="base.safetensors")
    recipe = {"med": 0.5, "one": -1.25, "two": 1, "fin": -0.5}
    knobs.set(recipe)
    written = merged([f"{avs[name]}:{lam}" for name, lam in recipe.items()], "a.safetensors")
    assert bits(model.state_dict()) == bits(written)
    knobs.set(one=1)
    alone = merged(["one:1"], "b.safetensors")
    assert bits(model.state_dict()) == bits(alone)
    # Counted are the tensors that the adapter changes, and no others.
    assert knobs.counts.elements == 32 * 32 + 32 * 48 + 2 * 260 * 32 + 32
    moved = [name for name, tensor in alone.items() if not torch.equal(tensor, project.base[name])]
    assert len(moved) == 5
    knobs.set()
    assert bits(model.state_dict()) == bits(project.base)


def test_values_that_are_not_finite_are_counted_over_all_pieces(
    project: SmallProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MappedVector, "chunk", 100)
    ones = np.ones((2, 32), np.float32)
    save_by_hand(
        Path("x"), {f"{ATTENTION}.lora_A.weight": ones, f"{ATTENTION}.lora_B.weight": ones.T}
    )
    model = load_model(project.directory / "hf", dtype=torch.bfloat16)
    knobs = Knobs(model, {"x": "x"}, base="base.safetensors")
    # Δ is 4, so λΔ overflows float32 in all of the 32 × 32 elements.
    with pytest.raises(NonFiniteError, match=r"'model.*q_proj.weight' would hold 1024 values"):
        knobs.set(x=3e38)


def test_an_adapter_is_its_delta_file(project: SmallProject) -> None:
    """extract keeps float32 differences, so the file gives the bits of the adapter itself."""
    directory = adapter(Path("one"))
    out = Path("one.safetensors")
    extract(plan_extract("base.safetensors", str(directory), out))
    one, two = (
        Knobs(load_model("hf", dtype=torch.bfloat16), {"x": path}, base="base.safetensors")
        for path in (directory, out)
    )
    one.set(x=0.7)
    two.set(x=0.7)
    assert bits(one_state(one)) == bits(one_state(two))


def one_state(knobs: Knobs) -> dict[str, torch.Tensor]:
    return {target.name: target.tensor for target in knobs._targets}


@pytest.mark.parametrize("path", ["./one", "link", "one/adapter_model.safetensors"])
def test_one_vector_under_two_names_is_refused(project: SmallProject, path: str) -> None:
    adapter(Path("one"))
    Path("link").symlink_to("one")
    model = load_model(project.directory / "hf", dtype=torch.bfloat16)
    with pytest.raises(RecipeError, match="--av b: the same file or directory as a, expected each"):
        Knobs(model, {"a": "one", "b": path}, base="base.safetensors")


def test_adapters_of_another_model_are_refused(project: SmallProject) -> None:
    rng = np.random.default_rng(0)
    name = f"{P}model.layers.7.self_attn.q_proj"
    tensors = {
        f"{name}.lora_{x}.weight": rng.standard_normal(shape).astype(np.float32)
        for x, shape in (("A", (2, 32)), ("B", (32, 2)))
    }
    save_by_hand(Path("far"), tensors)
    model = load_model(project.directory / "hf", dtype=torch.bfloat16)
    with pytest.raises(MismatchError, match=r"'model.layers.7.self_attn.q_proj', but the base"):
        Knobs(model, {"far": "far"}, base="base.safetensors")
