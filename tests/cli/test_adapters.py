"""LoRA adapters wherever the commands take an alignment vector."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adapters import save_by_hand
from avops.cli.main import main
from small_project import SmallProject

P = "base_model.model."


@pytest.fixture
def adapter(project: SmallProject) -> str:
    """Low-rank attention and embedding, and a norm saved whole, beside the project's AVs."""
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> np.ndarray:
        return (0.2 * rng.standard_normal(shape)).astype(np.float32)

    tensors = {f"{P}model.norm.weight": draw(32)}
    for layer in (0, 1):
        name = f"{P}model.layers.{layer}.self_attn.q_proj.lora_"
        tensors |= {f"{name}A.weight": draw(4, 32), f"{name}B.weight": draw(32, 4)}
    name = f"{P}model.embed_tokens.lora_embedding_"
    tensors |= {f"{name}A": draw(4, 260), f"{name}B": draw(32, 4)}
    config = {"r": 4, "target_modules": ["q_proj"], "base_model_name_or_path": "some/base"}
    save_by_hand(Path("lora"), tensors, config)
    return "lora"


def result(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    capsys.readouterr()
    assert main([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_score_of_an_adapter_is_score_of_its_merge(
    adapter: str, capsys: pytest.CaptureFixture[str]
) -> None:
    terms = ["--av", f"{adapter}:-0.75", "med:0.5"]
    assert main(["merge", "base.safetensors", *terms, "-o", "out.safetensors"]) == 0
    result(capsys, "score", "base.safetensors", *terms, "--table", "live.npz")
    result(capsys, "score", "out.safetensors", "--table", "written.npz")
    with np.load("live.npz") as live, np.load("written.npz") as written:
        assert live["scores"].tobytes() == written["scores"].tobytes()


def test_sweep_over_an_adapter(adapter: str, capsys: pytest.CaptureFixture[str]) -> None:
    swept = result(capsys, "sweep", "--av", f"{adapter}:-1:1:1", "-o", "swept.png")
    scored = result(capsys, "score", "--av", f"{adapter}:1")
    assert [point["lam"] for point in swept["points"]] == ["-1", "0", "1"]
    assert swept["points"][2]["domains"] == scored["domains"]
    assert swept["points"][0]["domains"] != scored["domains"]


def test_extract_and_its_use(adapter: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The delta file of an adapter gives the bytes of the adapter itself."""
    found = result(capsys, "extract", "base.safetensors", adapter, "-o", "lora.safetensors")
    assert (found["tensors"], found["dtype"]) == (4, "F32")
    assert found["elements"] == 2 * 32 * 32 + 260 * 32 + 32
    for number, av in enumerate((adapter, "lora.safetensors")):
        words = ["merge", "base.safetensors", "--av", f"{av}:0.6", "-o", f"{number}.safetensors"]
        assert main(words) == 0
    assert Path("0.safetensors").read_bytes() == Path("1.safetensors").read_bytes()


def test_inspect_shows_what_is_changed(adapter: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", adapter]) == 0
    shown = capsys.readouterr().out
    assert "lora: LoRA adapter, rank 4, alpha 4, scale alpha/rank; changes 4 tensors" in shown
    assert "3 by low-rank products, 1 whole" in shown
    assert "model.layers.*.self_attn.q_proj.weight" in shown
    assert "modules: q_proj" in shown
    assert "trained on: some/base" in shown
    assert "norm of the alignment vectors" not in shown
    assert main(["inspect", adapter, "avs/med.safetensors", "--base", "base.safetensors"]) == 0
    shown = capsys.readouterr().out
    assert "norm of the alignment vectors" in shown
    assert "cosine" in shown


def test_inspect_as_json(adapter: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = result(capsys, "inspect", adapter, "--base", "base.safetensors")
    (entry,) = found["checkpoints"]
    assert (entry["kind"], entry["adapter"]["rank"], entry["adapter"]["alpha"]) == ("adapter", 4, 4)
    touches = {group["name"]: group for group in entry["adapter"]["touches"]}
    queries = touches["model.layers.*.self_attn.q_proj.weight"]
    assert (queries["tensors"], queries["ranks"], queries["scales"]) == (2, [4], [1.0])
    assert queries["shapes"] == [[32, 32]]
    assert touches["model.norm.weight"]["whole"] == 1
    (vector,) = found["vectors"]
    assert vector["norm"] > 0
    plain = result(capsys, "inspect", "base.safetensors")["checkpoints"][0]
    assert (plain["kind"], plain["adapter"]) == ("checkpoint", None)


def test_one_adapter_by_two_paths(adapter: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["base.safetensors", "--av", f"{adapter}:1", f"./{adapter}:1"]
    for verb in ("score", "merge"):
        assert main([verb, *words]) == 2
        assert "the same file or directory as lora" in capsys.readouterr().err


def test_an_adapter_is_no_base(adapter: str, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["merge", adapter, "--av", "med:1"], ["score", adapter]):
        assert main(words) == 2
        assert "a LoRA adapter, expected a checkpoint of weights" in capsys.readouterr().err


def test_inspect_names_modules_once(
    project: SmallProject, adapter: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """PEFT may list the modules of every layer."""
    path = Path(adapter, "adapter_config.json")
    config = json.loads(path.read_text())
    layers = [f"model.layers.{layer}.self_attn.q_proj" for layer in (0, 1)]
    path.write_text(json.dumps({**config, "target_modules": [*layers, "embed_tokens"]}))
    assert main(["inspect", adapter, "base.safetensors"]) == 0
    shown = capsys.readouterr().out
    assert "\nmodules: model.layers.*.self_attn.q_proj embed_tokens\n" in shown
    assert "\n\nbase.safetensors: " in shown
    assert "\n\n\n" not in shown
