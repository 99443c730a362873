"""Half-precision files loaded in float32: transformers' own model, without the file beside it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from avops.score import load_model, mapped_files, save_model
from avops.score import model as model_file
from score.architectures import PACKABLE, make

WIDENED = ("mistral", "llama", "qwen2", "qwen3", "phi3", "gpt_neox", "granite")
"""All of whose parameters are the file's, and whose buffers are rotary frequencies, or none."""


def both_ways(path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any, list[bool]]:
    """The model, as transformers would load it in float32, and what was asked for the first."""
    asked: list[bool] = []
    given = model_file.widened

    def watched(model: Any, stored: torch.dtype) -> bool:
        asked.append(given(model, stored))
        return asked[-1]

    with monkeypatch.context() as patch:
        patch.setattr(model_file, "widened", watched)
        one = load_model(path)
    with monkeypatch.context() as patch:
        patch.setattr(model_file, "dtype_to_widen", lambda *_: None)
        return one, load_model(path), asked


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", list(PACKABLE))
def test_it_is_the_model_that_transformers_loads(
    name: str, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(tmp_path, make(name).to(dtype))
    one, two, asked = both_ways(tmp_path, monkeypatch)
    assert asked == [name in WIDENED] or name not in WIDENED
    mapped = mapped_files.mapped_files()
    for way in (one, two):
        assert {p.dtype for p in way.parameters()} == {torch.float32}
        assert way.config.dtype == way.dtype == torch.float32
        assert not way.training
        for parameter in way.parameters():
            assert not any(a <= parameter.data_ptr() < b for a, b in mapped)
            assert parameter.data_ptr() % 64 == 0
    first, second = (
        {**dict(way.named_parameters()), **dict(way.named_buffers())} for way in (one, two)
    )
    assert list(first) == list(second)
    for key, tensor in first.items():
        assert tensor.dtype == second[key].dtype, key
        assert torch.equal(tensor, second[key]), key
    assert one.config.to_dict() == two.config.to_dict()
    assert one.generation_config.to_dict() == two.generation_config.to_dict()
    ids = torch.arange(5, 30)[None]
    with torch.inference_mode():
        assert torch.equal(one(input_ids=ids).logits, two(input_ids=ids).logits)


def test_another_default_dtype_takes_transformers_way(tmp_path: Path) -> None:
    """In it, modules would be compared with what they computed as imprecisely."""
    save_model(tmp_path, make("llama").to(torch.bfloat16))
    torch.set_default_dtype(torch.bfloat16)
    try:
        loaded = load_model(tmp_path)
    finally:
        torch.set_default_dtype(torch.float32)
    again = load_model(tmp_path)
    for one, two in zip(loaded.buffers(), again.buffers(), strict=True):
        assert torch.equal(one, two)


def test_tied_weights_stay_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model(tmp_path, make("qwen2").to(torch.bfloat16))
    one, _, asked = both_ways(tmp_path, monkeypatch)
    assert asked == [True]
    assert one.lm_head.weight is one.model.embed_tokens.weight


def test_a_config_that_says_another_dtype(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a file holds decides: float32 weights are not narrowed, nor bf16 taken for f16."""
    for held, said in ((torch.float32, "bfloat16"), (torch.bfloat16, "float16")):
        made = make("llama").to(held)
        save_model(tmp_path, made)
        config = tmp_path / "config.json"
        text = config.read_text()
        own = str(held).removeprefix("torch.")
        assert f'"dtype": "{own}"' in text
        config.write_text(text.replace(f'"dtype": "{own}"', f'"dtype": "{said}"'))
        one, _, asked = both_ways(tmp_path, monkeypatch)
        assert asked == [False]
        for parameter, kept in zip(one.parameters(), made.parameters(), strict=True):
            assert torch.equal(parameter, kept.float())


def test_buffers_made_in_half_precision_are_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gemma 3 keeps √hidden as a buffer of the default dtype: widened, it would be another."""
    save_model(tmp_path, make("gemma3").to(torch.bfloat16))
    one, _, asked = both_ways(tmp_path, monkeypatch)
    assert asked == [False]
    assert one.model.embed_tokens.embed_scale == torch.tensor(32**0.5)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="no peaks are told")
def test_the_file_is_not_kept_beside_the_model(tmp_path: Path) -> None:
    size = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 2}
    save_model(tmp_path, make("llama", **size, head_dim=64).to(torch.bfloat16))
    megabytes = (tmp_path / "model.safetensors").stat().st_size / 1e6
    assert megabytes > 50
    code = f"""
import gc
from pathlib import Path
from avops.score import heap, load_model, model

def peak():
    heap.trim_heap()
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024 / 1e6

def taken():
    before = peak()
    made = load_model({str(tmp_path)!r})
    lines = Path("/proc/self/status").read_text().splitlines()
    high = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024 / 1e6
    return high - before

taken()
one = taken()
model.dtype_to_widen = lambda *_: None
print(one, taken())
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    ours, theirs = (float(word) for word in done.stdout.split())
    # Twice the file's size is the model; a piece of 4 MiB of the file, and what else is loaded.
    assert ours < 2.4 * megabytes
    assert theirs > 2.8 * megabytes
