"""A small base with awkward tensors, and aligned checkpoints of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from avops.stream import pipeline, windows, worker
from avops.stream.worker import Worker
from families import Family, Save, make_tensors


@pytest.fixture
def family(save: Save) -> Family:
    """Single files."""
    models = make_tensors(0)
    paths = {name: save(f"{name}.safetensors", tensors) for name, tensors in models.items()}
    return Family(paths["base"], paths["one"], paths["two"], models)


@pytest.fixture
def small_windows(monkeypatch: pytest.MonkeyPatch) -> int:
    """Windows of a prime number of bytes, so that small models have hundreds of them."""
    size = 13
    for module in (windows, worker, pipeline):
        monkeypatch.setattr(module, "BLOCK", size)
    return size


# Cut differently, with floating values in every shard of ``one`` and ``two``, and one shard of the
# base (not its last) that holds none.
SHARDS = {
    "base": (
        ("model.embed.weight", "model.layers.0.w", "model.layers.1.w"),
        ("model.ids", "model.mask"),
        ("model.router.weight", "model.scale", "model.empty"),
    ),
    "one": (
        ("model.layers.1.w", "model.embed.weight", "model.scale", "model.mask"),
        ("model.layers.0.w", "model.router.weight", "model.empty", "model.ids"),
    ),
    "two": (
        ("model.router.weight", "model.ids"),
        ("model.layers.0.w", "model.scale", "model.mask"),
        ("model.layers.1.w", "model.embed.weight", "model.empty"),
    ),
}


@pytest.fixture
def sharded_family(save: Save, tmp_path: Path) -> Family:
    """Directories of the shards in ``SHARDS``; the base with sidecars."""
    models = make_tensors(1)
    for model, shards in SHARDS.items():
        weight_map = {}
        for number, names in enumerate(shards, 1):
            file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            tensors = {name: models[model][name] for name in names}
            save(f"{model}/{file}", tensors, {"format": "pt"})
            weight_map.update(dict.fromkeys(names, file))
        assert weight_map.keys() == models[model].keys()
        total = sum(array.nbytes for array in models[model].values())
        index = {"metadata": {"total_size": total, "other": 1}, "weight_map": weight_map}
        (tmp_path / model / "model.safetensors.index.json").write_text(json.dumps(index))
    base = tmp_path / "base"
    (base / "config.json").write_text('{"model_type": "x", "torch_dtype": "bfloat16", "a": 0.10}')
    (base / "tokenizer.json").write_text('{"odd":  "spacing"}')
    (base / "modeling_x.py").write_text("# remote code\n")
    (base / "README.md").write_text("base's own card")
    (base / "pytorch_model.bin").write_bytes(b"pickle")
    return Family(base, tmp_path / "one", tmp_path / "two", models)


@pytest.fixture
def general(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Windows that went the general way: output file and block."""
    found: list[tuple[int, int]] = []
    real = Worker.read

    def read(self: Worker, window: windows.Window) -> Any:
        found.append((window.output, window.block))
        return real(self, window)

    monkeypatch.setattr(Worker, "read", read)
    return found
