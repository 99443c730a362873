"""LoRA adapters for tests: saved by PEFT itself, or made by hand."""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from avops import kernels
from avops.disk import LowRank, Vector
from avops.dtypes import F32
from avops.kernels import Operand
from bits import bf16

CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 4}


def save_by_hand(
    directory: Path, tensors: dict[str, np.ndarray], config: dict[str, Any] | None = None
) -> Path:
    """Write ``tensors`` (uint16: BF16) and CONFIG with ``config`` over it as an adapter."""
    import torch
    from safetensors.torch import save_file

    directory.mkdir(parents=True, exist_ok=True)
    made = {name: torch.from_numpy(array.copy()) for name, array in tensors.items()}
    for name, tensor in made.items():
        made[name] = tensor.view(torch.bfloat16) if tensor.dtype == torch.uint16 else tensor
    save_file(made, directory / "adapter_model.safetensors", {"format": "pt"})
    (directory / "adapter_config.json").write_text(json.dumps({**CONFIG, **(config or {})}))
    return directory


def llama(**more: Any) -> Any:
    """A tiny random Llama in float32."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = {
        "vocab_size": 48,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "tie_word_embeddings": False,
    }
    return LlamaForCausalLM(LlamaConfig(**{**shape, **more}))


def gpt2() -> Any:
    """A tiny random GPT-2 in float32, whose Conv1D weights are stored transposed."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    shape = {"vocab_size": 48, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16}
    return GPT2LMHeadModel(GPT2Config(**shape, bos_token_id=0, eos_token_id=0))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """PEFT and transformers warn of their own deprecated names, and of what tests ask for."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def save(directory: Path, model: Any, config: str, **settings: Any) -> None:
    """Adapt ``model`` with PEFT's ``config`` class and write the adapter to ``directory``."""
    import peft

    with quiet():
        peft.get_peft_model(model, getattr(peft, config)(**settings)).save_pretrained(directory)


def train(model: Any, directory: Path, **config: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Adapt ``model`` with PEFT and move everything that would be trained.

    Writes ``base.safetensors`` and ``adapter/`` into ``directory``. Returns the base's weights,
    and those that PEFT's merge_and_unload gives with the adapter loaded from there. (Loading
    counts: PEFT sorts the patterns of ranks and alphas when it saves, so others may win.)
    """
    import copy

    import peft
    import torch
    from safetensors.torch import save_file

    directory.mkdir(parents=True, exist_ok=True)
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    base = {
        name: tensor.detach().clone()
        for name, tensor in model.state_dict().items()
        if name not in tied
    }
    save_file(base, directory / "base.safetensors", {"format": "pt"})
    with quiet():
        fresh = copy.deepcopy(model)
        adapted = peft.get_peft_model(model, peft.LoraConfig(**config))
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in adapted.parameters():
                if parameter.requires_grad:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator))
        adapted.save_pretrained(directory / "adapter")
        loaded = peft.PeftModel.from_pretrained(fresh, str(directory / "adapter"))
        merged = loaded.merge_and_unload().state_dict()
    return base, {name: tensor.detach().clone() for name, tensor in merged.items()}


def wide(vector: Vector, tensor: Any) -> np.ndarray:
    """A stored F32 or BF16 tensor of ``vector`` in float32, read without avops."""
    raw = vector.checkpoint.shards[tensor.shard].path.read_bytes()
    raw = raw[tensor.offset : tensor.offset + tensor.nbytes]
    if tensor.dtype is F32:
        return np.frombuffer(raw, "<f4").reshape(tensor.shape)
    bits = np.frombuffer(raw, "<u2").astype(np.uint32) << np.uint32(16)
    return bits.view(np.float32).reshape(tensor.shape)


def delta(vector: Vector, part: LowRank) -> np.ndarray:
    """Δ of ``part`` by the reference kernel."""
    a, b = (Operand(wide(vector, tensor).ravel(), F32) for tensor in (part.a, part.b))
    made = kernels.factors(a, b, rank=part.rank, scale=part.scale, transposed=part.transposed)
    out = Operand(np.empty(part.count, np.float32), F32)
    kernels.lowrank(made, 0, out, backend="reference")
    return out.array.reshape(part.shape)


def bound(vector: Vector, part: LowRank) -> np.ndarray:
    """|scale| · Σ|b||a| in float64, of the shape of Δ: what rounding errors of Δ scale with."""
    a, b = (np.abs(wide(vector, tensor)).astype(np.float64) for tensor in (part.a, part.b))
    product = b.reshape(-1, part.rank) @ a.reshape(part.rank, -1)
    return abs(part.scale) * (product.T if part.transposed else product).reshape(part.shape)


def family_adapter(directory: Path, seed: int = 0, *, whole: bool = True) -> Path:
    """An adapter of the checkpoints in families.py, with factors in bf16 and f32."""
    rng = np.random.default_rng(seed)

    def draw(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    embed = "base_model.model.model.embed.lora_embedding_"
    tensors = {f"{embed}A": bf16(draw(3, 37)), f"{embed}B": draw(16, 3)}
    if whole:
        tensors["base_model.model.model.router.weight"] = draw(5, 3)
    else:
        router = "base_model.model.model.router.lora_"
        tensors |= {f"{router}A.weight": draw(2, 3), f"{router}B.weight": draw(5, 2)}
    config = {"r": 3, "lora_alpha": 7, "use_rslora": True, "rank_pattern": {"router": 2}}
    return save_by_hand(directory, tensors, config)
