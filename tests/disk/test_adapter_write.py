"""Which tensors become factors of an adapter, and the settings beside them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from avops.disk import open_checkpoint
from avops.disk.adapter_config import read_adapter_config
from avops.disk.adapter_write import adapter_config, factor_names, linear_layers

SHAPES = {
    "model.embed_tokens.weight": (12, 4),
    "model.layers.0.q_proj.weight": (4, 4),
    "model.layers.0.q_proj.bias": (4,),
    "model.layers.0.mlp.gate_proj.weight": (6, 4),
    "model.layers.0.moe.gate.weight": (3, 4),
    "model.layers.0.moe.experts.weight": (3, 6, 4),
    "model.layers.0.moe.down": (6, 4),
    "model.layers.0.none.weight": (0, 4),
    "lm_head.weight": (12, 4),
}


def tensors() -> dict[str, np.ndarray]:
    return {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}


@pytest.mark.parametrize("tied", [True, False])
def test_what_becomes_factors(save: Callable[..., Path], tmp_path: Path, tied: bool) -> None:
    base = open_checkpoint(save("base.safetensors", tensors()))
    config = {"tie_word_embeddings": tied, "architectures": ["XForCausalLM"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    layers = linear_layers(base, base.tensors.values())
    assert layers.left_out == {
        "model.embed_tokens.weight": "an embedding",
        "model.layers.0.q_proj.bias": "no matrix",
        "model.layers.0.moe.gate.weight": "a gate of experts",
        "model.layers.0.moe.experts.weight": "no matrix",
        "model.layers.0.moe.down": "no module's weight",
        "model.layers.0.none.weight": "no matrix",
        **({"lm_head.weight": "tied to the embedding"} if tied else {}),
    }
    heads = set() if tied else {"lm_head"}
    modules = {"model.layers.0.q_proj", "model.layers.0.mlp.gate_proj", *heads}
    assert set(layers.modules.values()) == modules
    assert (layers.transposed, layers.task) == (False, "CAUSAL_LM")


@pytest.mark.parametrize(
    "text", [None, "[1]", "{", '{"architectures": 7}', '{"architectures": []}']
)
def test_a_config_that_says_nothing(
    save: Callable[..., Path], tmp_path: Path, text: str | None
) -> None:
    base = open_checkpoint(save("base.safetensors", tensors()))
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    layers = linear_layers(base, base.tensors.values())
    assert layers.task is None
    assert "lm_head.weight" in layers.modules


def test_the_settings_are_read_back(save: Callable[..., Path], tmp_path: Path) -> None:
    base = open_checkpoint(save("base.safetensors", tensors()))
    layers = linear_layers(base, base.tensors.values())
    path = tmp_path / "adapter_config.json"
    path.write_bytes(adapter_config(base, layers, 5, "org/base"))
    config = read_adapter_config(path)
    assert (config.rank, config.scale_of("model.layers.0.q_proj"), config.base) == (
        5,
        1,
        "org/base",
    )
    assert config.modules == ("gate_proj", "lm_head", "q_proj")


def test_names() -> None:
    assert factor_names("a.b") == (
        "base_model.model.a.b.lora_A.weight",
        "base_model.model.a.b.lora_B.weight",
    )
