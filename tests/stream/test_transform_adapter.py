"""extract --rank: PEFT loads what it writes, and merges the product that avops says it is."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adapters import bound, delta, gpt2, llama, quiet
from avops.disk import RECIPE_NAME, LowRank, check_vector, open_base, open_vector
from avops.disk.digest import file_digest
from avops.dtypes import BF16, F32, DType
from avops.errors import MismatchError, NonFiniteError, OutputError
from avops.kernels.transforms import reference
from avops.recipe import Recipe, Source, Term, parse_lam
from avops.stream import merge, plan_merge
from avops.stream.transform_adapter import AdapterReport, write_adapters
from avops.stream.transform_adapter_plan import plan_adapters
from avops.stream.transform_plan import Extraction
from avops.stream.transforms import Transforms


def run(
    base: Path,
    aligned: Sequence[Path],
    outs: Sequence[Path],
    transforms: Transforms,
    dtype: DType = F32,
) -> AdapterReport:
    extraction = Extraction(
        str(base), tuple(map(str, aligned)), tuple(outs), transforms, dtype, force=True
    )
    return write_adapters(plan_adapters(extraction))


class Pair:
    """A model of transformers saved as base.safetensors with its config, and moved weights."""

    def __init__(self, directory: Path, model: Any, vectors: int = 1) -> None:
        import torch
        from safetensors.torch import save_file

        self.model, self.base = model, directory / "base.safetensors"
        tied = set(getattr(model, "all_tied_weights_keys", None) or ())
        weights = {
            name: tensor.detach().clone()
            for name, tensor in model.state_dict().items()
            if name not in tied
        }
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(directory)
        save_file(weights, self.base, {"format": "pt"})
        generator = torch.Generator().manual_seed(1)
        self.weights = {name: tensor.numpy() for name, tensor in weights.items()}
        self.aligned, self.deltas = [], []
        for number in range(vectors):
            moved = {
                name: tensor + 0.05 * torch.randn(tensor.shape, generator=generator)
                for name, tensor in weights.items()
            }
            self.aligned.append(directory / f"aligned{number}.safetensors")
            save_file(moved, self.aligned[-1], {"format": "pt"})
            self.deltas.append({n: (moved[n] - weights[n]).numpy() for n in weights})

    def merged_by_peft(self, adapter: Path) -> dict[str, np.ndarray]:
        import peft

        with quiet():
            loaded = peft.PeftModel.from_pretrained(copy.deepcopy(self.model), str(adapter))
            state = loaded.merge_and_unload().state_dict()
        return {name: tensor.detach().numpy() for name, tensor in state.items()}


MODELS = {
    "llama": llama,
    "llama, tied": lambda: llama(tie_word_embeddings=True),
    "llama with biases": lambda: llama(attention_bias=True, mlp_bias=True),
    "gpt2": gpt2,
}


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("rank", [3, 20])
def test_peft_merges_the_product(tmp_path: Path, model: str, rank: int, dtype: DType) -> None:
    """Rank 20 is above the smaller side of most matrices: these have the rank of that side."""
    pytest.importorskip("peft")
    pair = Pair(tmp_path, MODELS[model]())
    out = tmp_path / "lora"
    report = run(pair.base, pair.aligned, [out], Transforms(rank=rank), dtype)
    merged = pair.merged_by_peft(out)
    vector = open_vector("x", out)
    check_vector(open_base(pair.base), vector)
    assert report.tensors == len(vector.parts) > 5
    for name, part in vector.parts.items():
        assert isinstance(part, LowRank)
        assert (part.rank, part.scale) == (min(rank, *part.shape), 1.0)
        expected = pair.weights[name] + delta(vector, part)
        # Two float32 sums of `rank` products, each off by (rank + 1) · 2^-24 of Σ|b||a|, and two
        # rounded additions to the base.
        room = 2 * (rank + 1) * 2.0**-24 * bound(vector, part) + 2.0**-23 * np.abs(expected)
        assert np.all(np.abs(merged[name] - expected) <= room)
    for name in pair.weights.keys() - vector.parts.keys():
        assert np.array_equal(merged[name], pair.weights[name]), name


@pytest.mark.parametrize("model", MODELS)
def test_products_are_the_nearest(tmp_path: Path, model: str) -> None:
    pair = Pair(tmp_path, MODELS[model]())
    report = run(pair.base, pair.aligned, [tmp_path / "lora"], Transforms(rank=4))
    vector = open_vector("x", tmp_path / "lora")
    squares = kept = 0.0
    for name, part in vector.parts.items():
        moved = pair.deltas[0][name].astype(np.float64)
        sizes = np.linalg.svd(moved, compute_uv=False)
        best = np.sqrt((sizes[4:] ** 2).sum())
        lost = np.linalg.norm(moved - delta(vector, part))  # type: ignore[arg-type]
        # Factors and sums are float32: 2 · 2^-24 by the factors, 5 · 2^-24 by the sum of 4.
        room = 7 * 2.0**-24 * np.linalg.norm(bound(vector, part))  # type: ignore[arg-type]
        assert best - room <= lost <= best + room
        share = np.sqrt((sizes[:4] ** 2).sum() / (sizes**2).sum())
        # Reported with six digits.
        assert report.outputs[0].kept[name] == pytest.approx(share, rel=1e-5)
        squares, kept = squares + (sizes**2).sum(), kept + (sizes[:4] ** 2).sum()
    total = sum((d.astype(np.float64) ** 2).sum() for d in pair.deltas[0].values())
    output = report.outputs[0]
    assert output.kept_matrices == pytest.approx(np.sqrt(kept / squares), rel=1e-5)
    assert output.kept_all == pytest.approx(np.sqrt(kept / total), rel=1e-5)


def test_what_is_left_out(tmp_path: Path) -> None:
    pair = Pair(tmp_path, llama())
    report = run(pair.base, pair.aligned, [tmp_path / "lora"], Transforms(rank=2))
    norms = [
        *(
            "model.layers.0.input_layernorm.weight",
            "model.layers.0.post_attention_layernorm.weight",
        ),
        "model.layers.1.input_layernorm.weight",
    ]
    end = "; what changed there is not in the adapter"
    assert sorted(report.notes) == [
        f"left out (an embedding): 1 tensor, model.embed_tokens.weight{end}",
        f"left out (no matrix): 5 tensors, {', '.join(norms)}, ...{end}",
    ]
    config = json.loads((tmp_path / "lora/adapter_config.json").read_text())
    assert config["target_modules"] == [
        *("down_proj", "gate_proj", "k_proj", "lm_head", "o_proj", "q_proj", "up_proj", "v_proj")
    ]
    assert (config["r"], config["lora_alpha"], config["fan_in_fan_out"]) == (2, 2, False)
    assert config["task_type"] == "CAUSAL_LM"
    assert config["base_model_name_or_path"] == "base.safetensors"


def test_conv1d_is_told_from_its_bias(tmp_path: Path) -> None:
    pair = Pair(tmp_path, gpt2())
    run(pair.base, pair.aligned, [tmp_path / "lora"], Transforms(rank=2))
    config = json.loads((tmp_path / "lora/adapter_config.json").read_text())
    assert config["fan_in_fan_out"] is True
    assert config["target_modules"] == ["c_attn", "c_fc", "c_proj"]


def test_names_that_other_modules_share_are_written_whole(save: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    shapes = {"a.proj.weight": (6, 4), "b.proj.weight": (6, 4, 2), "b.w.weight": (4, 4)}
    base = {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
    aligned = {n: v + rng.standard_normal(v.shape).astype(np.float32) for n, v in base.items()}
    paths = [save("base.safetensors", base), save("aligned.safetensors", aligned)]
    run(paths[0], paths[1:], [tmp_path / "lora"], Transforms(rank=2))
    config = json.loads((tmp_path / "lora/adapter_config.json").read_text())
    assert config["target_modules"] == ["a.proj", "w"]
    assert config["task_type"] is None


def test_after_the_other_transforms(tmp_path: Path) -> None:
    """Two vectors, trimmed and elected, each an adapter of what is left: at full rank all of it."""
    pair = Pair(tmp_path, llama(), vectors=2)
    outs = [tmp_path / f"lora{k}" for k in range(2)]
    transforms = Transforms(trim="0.3", sign_elect=True, rank=48)
    report = run(pair.base, pair.aligned, outs, transforms)
    for number, out in enumerate(outs):
        vector = open_vector("x", out)
        for name, part in vector.parts.items():
            flat = [d[name].reshape(-1) for d in pair.deltas]
            cut = [reference.trim(d, int(0.3 * d.size)) for d in flat]
            expected = reference.elect(cut)[number].reshape(part.shape)
            # Full rank: what is lost is rounding of factors (2 · 2^-24) and of the sum of 48.
            room = 51 * 2.0**-24 * bound(vector, part)  # type: ignore[arg-type]
            assert np.all(np.abs(delta(vector, part) - expected) <= room + 1e-12)  # type: ignore[arg-type]
            assert report.outputs[number].kept[name] == 1.0
        text = "trim 0.3 per tensor, sign-elect among 2, rank 48"
        assert vector.metadata["avops.transforms"] == text
        record = json.loads((out / RECIPE_NAME).read_text())
        assert record["avops.transforms"] == text
        assert record["kept_norm"] == report.outputs[number].kept_all


def test_a_rank_beyond_a_side_is_cut_and_said(tmp_path: Path) -> None:
    pair = Pair(tmp_path, llama())
    out = tmp_path / "lora"
    report = run(pair.base, pair.aligned, [out], Transforms(rank=10_000))
    sides = {name: min(part.shape) for name, part in open_vector("x", out).parts.items()}
    config = json.loads((out / "adapter_config.json").read_text())
    most = max(sides.values())
    assert (config["r"], config["lora_alpha"]) == (most, most)
    lower = {name.removesuffix(".weight"): side for name, side in sides.items() if side != most}
    assert config["rank_pattern"] == config["alpha_pattern"] == lower
    assert lower
    assert report.outputs[0].kept_matrices == 1.0
    least = min(sides, key=lambda name: sides[name])
    cut, large = report.notes[-2:]
    assert cut.startswith(f"rank 10000 is beyond the smaller side of {len(sides)} tensors, ")
    assert f"down to {sides[least]} of {least} (" in cut
    size = (out / "adapter_model.safetensors").stat().st_size
    whole = 4 * sum(weights.size for weights in pair.weights.values())
    assert large == (
        f"the adapter has {size:,} bytes, a delta file {whole:,}, and that one keeps everything: "
        "leave out --rank, or give a lower one"
    )


def test_merge_takes_it(tmp_path: Path) -> None:
    pair = Pair(tmp_path, llama())
    run(pair.base, pair.aligned, [tmp_path / "lora"], Transforms(rank=4))
    terms = (Term(Source("x", str(tmp_path / "lora")), parse_lam("-.5", "x"), "-.5"),)
    out = tmp_path / "merged.safetensors"
    merge(plan_merge(Recipe(str(pair.base), terms), out))
    from safetensors.numpy import load_file

    merged, vector = load_file(out), open_vector("x", tmp_path / "lora")
    for name, weights in pair.weights.items():
        expected = weights
        if name in vector.parts:
            part = vector.parts[name]
            expected = weights + np.float32(-0.5) * delta(vector, part)  # type: ignore[arg-type]
        assert np.array_equal(merged[name], expected), name


def test_the_directory_is_whole_and_replaceable(tmp_path: Path) -> None:
    pair = Pair(tmp_path, llama())
    out = tmp_path / "lora"
    for rank in (2, 3):
        run(pair.base, pair.aligned, [out], Transforms(rank=rank))
        names = ["adapter_config.json", "adapter_model.safetensors", RECIPE_NAME]
        assert sorted(os.listdir(out)) == sorted(names)
        record = json.loads((out / RECIPE_NAME).read_text())
        for name in names[:2]:
            assert record["files"][name]["xxh3"] == file_digest(out / name)
    first = (out / "adapter_model.safetensors").read_bytes()
    run(pair.base, pair.aligned, [out], Transforms(rank=3))
    assert (out / "adapter_model.safetensors").read_bytes() == first
    vector = open_vector("x", out)
    assert vector.metadata["avops.base"] == "base.safetensors"


def test_refusals(save: Any, tmp_path: Path) -> None:
    pair = Pair(tmp_path, llama())

    def plan(out: str, base: Path = pair.base, aligned: Path = pair.aligned[0]) -> None:
        plan_adapters(Extraction(str(base), (str(aligned),), (tmp_path / out,), Transforms(rank=2)))

    with pytest.raises(OutputError, match=r"x\.safetensors: a file, but a LoRA adapter is a dir"):
        plan("x.safetensors")
    lines = {"model.norm.weight": np.ones(4, np.float32)}
    paths = [save(f"{name}.safetensors", lines) for name in ("b", "c")]
    with pytest.raises(MismatchError, match="is the matrix of a linear layer, expected some for"):
        plan("lora", *paths)
    both = {
        "a.weight": np.ones((4, 6), np.float32),
        "a.bias": np.ones(6, np.float32),
        "b.weight": np.ones((4, 6), np.float32),
        "b.bias": np.ones(4, np.float32),
    }
    paths = [save(f"{name}.safetensors", both) for name in ("d", "e")]
    with pytest.raises(MismatchError, match=r"'a\.weight' is stored \[in, out\] and 'b\.weight'"):
        plan("lora", *paths)


def test_values_that_are_not_finite(save: Any, tmp_path: Path) -> None:
    base = {"a.weight": np.ones((4, 6), np.float32)}
    bad = {"a.weight": np.full((4, 6), np.inf, np.float32)}
    paths = [save(f"{n}.safetensors", t) for n, t in (("base", base), ("bad", bad))]
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(NonFiniteError, match=r"'a\.weight' would hold 24 values .* in AV bad"):
        run(paths[0], paths[1:], [tmp_path / "lora"], Transforms(rank=2))
    assert sorted(os.listdir(tmp_path)) == before
