"""Adapters that PEFT saved, against what PEFT itself makes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adapters import bound, delta, gpt2, llama, quiet, save, train, wide
from avops.disk import LowRank, check_vector, open_base, open_vector
from avops.errors import CheckpointError

pytest.importorskip("peft")


def convolutions() -> Any:
    import torch

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.two = torch.nn.Conv2d(3, 5, (3, 2))
            self.one = torch.nn.Conv1d(5, 7, 4)
            self.point = torch.nn.Conv2d(5, 6, 1)
            self.grouped = torch.nn.Conv2d(4, 4, 3, groups=2)

    torch.manual_seed(0)
    return Model()


CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "plain": (llama, {"target_modules": ["q_proj", "v_proj", "down_proj"]}),
    "one rank": (llama, {"target_modules": ["q_proj"], "r": 1, "lora_alpha": 3}),
    "rslora": (llama, {"target_modules": ["o_proj"], "r": 5, "use_rslora": True}),
    "patterns": (
        llama,
        {
            "target_modules": "all-linear",
            "lora_alpha": 12,
            "rank_pattern": {
                "layers.0.self_attn.q_proj": 3,
                "up_proj": 7,
                r"layers\.1\..*k_proj": 2,
            },
            "alpha_pattern": {"^model.layers.1.mlp.up_proj": 5, "v_proj": 1, "proj": 9},
        },
    ),
    "patterns and rslora": (
        llama,
        {
            "target_modules": ["up_proj", "k_proj"],
            "use_rslora": True,
            "rank_pattern": {"0.mlp.up_proj": 3, "[du].*_proj": 6},
            "alpha_pattern": {"k_proj": 7},
        },
    ),
    "Conv1D": (gpt2, {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
    "Conv1D, corrected by PEFT": (gpt2, {"target_modules": ["attn.c_proj"]}),
    "modules_to_save": (
        llama,
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens"]},
    ),
    "a block saved whole": (llama, {"target_modules": ["q_proj"], "modules_to_save": ["mlp"]}),
    "embeddings": (llama, {"target_modules": ["embed_tokens", "lm_head", "v_proj"]}),
    "all biases": (gpt2, {"target_modules": ["c_attn"], "bias": "all", "fan_in_fan_out": True}),
    "biases of adapted modules": (
        lambda: llama(attention_bias=True, mlp_bias=True),
        {"target_modules": ["q_proj", "up_proj"], "bias": "lora_only"},
    ),
    "tied, the embedding saved whole": (
        lambda: llama(tie_word_embeddings=True),
        {
            "target_modules": ["q_proj"],
            "modules_to_save": ["embed_tokens"],
            "ensure_weight_tying": True,
        },
    ),
    "convolutions": (convolutions, {"target_modules": ["two", "one", "point"], "use_rslora": True}),
    "random init": (llama, {"target_modules": ["q_proj"], "init_lora_weights": "orthogonal"}),
}


@pytest.mark.parametrize("case", CASES)
def test_parts_are_what_peft_merges(tmp_path: Path, case: str) -> None:
    """Every tensor of the base, with PEFT's own merge_and_unload as the truth."""
    make, config = CASES[case]
    weights, merged = train(make(), tmp_path, **{"r": 4, "lora_alpha": 8, **config})
    base = open_base(tmp_path / "base.safetensors")
    vector = open_vector("x", tmp_path / "adapter")
    check_vector(base, vector)
    assert vector.kind == "adapter"
    moved = 0
    for name, tensor in weights.items():
        start, theirs = tensor.numpy(), merged[name].numpy()
        part = vector.parts.get(name)
        if part is None:
            assert start.tobytes() == theirs.tobytes(), name
        elif isinstance(part, LowRank):
            ours = start + delta(vector, part)
            # Both are within (r + 2) 2^-24 scale Σ|b||a| of exact Δ (r products, r - 1 sums, one
            # scaling), and each rounds the sum with the base once.
            error = 2 * (part.rank + 2) * 2.0**-24 * bound(vector, part)
            assert np.all(
                np.abs(ours.astype(np.float64) - theirs) <= error + 2.0**-23 * np.abs(theirs)
            )
            assert np.any(start != theirs)
            moved += 1
        else:
            assert wide(vector, part.tensor).tobytes() == theirs.tobytes(), name
            moved += np.any(start != theirs)
    assert moved == sum(1 for name in vector.parts if name in weights)


def test_scales_are_pefts(tmp_path: Path) -> None:
    """alpha / rank in double precision, rounded to float32 once, as torch does with a scalar."""
    train(llama(), tmp_path, target_modules=["q_proj"], r=7, lora_alpha=11, use_rslora=True)
    (part, *_) = open_vector("x", tmp_path / "adapter").parts.values()
    assert isinstance(part, LowRank)
    assert part.scale == float(np.float32(11 / np.sqrt(7)))


# What of PEFT is not base + scale·B@A and whole tensors, and by what it is recognised.
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "DoRA": ({"use_dora": True}, r"use_dora is on: DoRA, .*merge_and_unload"),
    "PiSSA": (
        {"init_lora_weights": "pissa"},
        r'init_lora_weights is "pissa": .*path_initial_model_for_weight_conversion',
    ),
    "OLoRA": ({"init_lora_weights": "olora"}, 'init_lora_weights is "olora"'),
    "rows": ({"trainable_token_indices": [1, 2]}, "trainable_token_indices is on: single trained"),
    "layers": ({"layer_replication": [[0, 2], [1, 2]]}, "layer_replication is on: .*repeated"),
    "B's bias": ({"lora_bias": True}, "lora_bias is on: a bias of its own on B"),
    "aLoRA": (
        {"alora_invocation_tokens": [3], "task_type": "CAUSAL_LM"},
        "alora_invocation_tokens is on: an activated LoRA",
    ),
    "parameters": (
        {"target_modules": [], "target_parameters": ["q_proj.weight"]},
        "target_parameters is on: LoRA on bare parameters",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_other_loras_are_refused_by_name(tmp_path: Path, case: str) -> None:
    config, message = REFUSED[case]
    model = llama(attention_bias=True)
    save(tmp_path, model, "LoraConfig", **{"target_modules": ["q_proj"], **config})
    with pytest.raises(CheckpointError, match=message):
        open_vector("x", tmp_path)


@pytest.mark.parametrize("kind", ["LoHa", "IA3", "OFT", "Vera"])
def test_other_methods_are_refused_by_name(tmp_path: Path, kind: str) -> None:
    more = {"feedforward_modules": []} if kind == "IA3" else {}
    save(tmp_path, llama(), f"{kind}Config", target_modules=["q_proj"], **more)
    with pytest.raises(CheckpointError, match=f'peft_type is "{kind.upper()}", expected "LORA"'):
        open_vector("x", tmp_path)


def test_grouped_convolutions_are_refused(tmp_path: Path) -> None:
    save(tmp_path, convolutions(), "LoraConfig", target_modules=["grouped"], r=4)
    with pytest.raises(CheckpointError, match=r"'grouped': .*B \[m, 4\] \(a grouped convolution"):
        open_vector("x", tmp_path)


def test_a_second_adapters_name_is_in_no_part(tmp_path: Path) -> None:
    """PEFT keeps adapters apart by directory; the one asked for is the one opened."""
    import peft

    with quiet():
        model = peft.get_peft_model(llama(), peft.LoraConfig(target_modules=["q_proj"], r=2))
        model.add_adapter("more", peft.LoraConfig(target_modules=["v_proj"], r=3))
        model.save_pretrained(tmp_path)
    assert all("q_proj" in name for name in open_vector("x", tmp_path).parts)
    assert all("v_proj" in name for name in open_vector("x", tmp_path / "more").parts)
