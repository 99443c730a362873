"""A small base with awkward tensors, and aligned checkpoints of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from families import Family, Save, make_tensors


@pytest.fixture
def family(save: Save) -> Family:
    """Single files."""
    models = make_tensors(0)
    paths = {name: save(f"{name}.safetensors", tensors) for name, tensors in models.items()}
    return Family(paths["base"], paths["one"], paths["two"], models)


@pytest.fixture
def sharded_family(save: Save, tmp_path: Path) -> Family:
    """Directories; the base in two shards with sidecars, ``two`` sharded otherwise."""
    models = make_tensors(1)
    names = list(models["base"])
    cuts = {"base": 3, "one": len(names), "two": 5}
    for model, cut in cuts.items():
        weight_map = {}
        for number, part in enumerate((names[:cut], names[cut:]), 1):
            file = f"model-{number:05d}-of-00002.safetensors"
            if part:
                tensors = {name: models[model][name] for name in part}
                save(f"{model}/{file}", tensors, {"format": "pt"})
                weight_map.update(dict.fromkeys(part, file))
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
