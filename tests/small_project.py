"""A project directory as a user has it: random tiny models, a byte tokenizer, items, avops.toml."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CONFIG: dict[str, Any] = {
    "model_type": "mistral",
    "vocab_size": 260,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "initializer_range": 0.1,
}
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }}"
    "[/INST]{% else %} {{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)
TOML = """
base = "base.safetensors"
data = "items.jsonl"
levels = ["exp", "gen", "avd"]
[av]
med = "avs/med.safetensors"
fin = { path = "aligned/fin.safetensors", kind = "aligned" }
leg = "avs/leg.safetensors"
"""
NAMES = ("med", "fin", "leg")


@dataclass(frozen=True)
class SmallProject:
    """The directory, and the models as torch state dicts in the checkpoint's dtype."""

    directory: Path
    base: dict[str, Any]
    aligned: dict[str, dict[str, Any]]


def byte_tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    from avops.score import new_tokenizer

    specials = ["<s>", "</s>", "[INST]", "[/INST]"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*specials, *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return new_tokenizer(
        backend,
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["[INST]", "[/INST]"],
        chat_template=TEMPLATE,
    )


def items() -> list[dict[str, Any]]:
    return [
        {
            "domain": domain,
            "query": f"{domain} question {number}?",
            "responses": {
                "exp": f"the {domain} answer is {number * 7} units",
                "gen": "it depends on many things",
                "avd": "ask someone else, please",
            },
        }
        for domain in NAMES
        for number in range(4)
    ]


def make(directory: Path, *, bfloat16: bool = True) -> SmallProject:
    """Fill ``directory``. AVs med and leg are delta files, fin is an aligned checkpoint."""
    import torch
    from safetensors.torch import save_file

    from avops.score import new_model, save_model
    from avops.stream import extract, plan_extract

    directory.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    model = new_model(CONFIG)
    dtype = torch.bfloat16 if bfloat16 else torch.float32
    save_model(directory / "hf", model.to(dtype), byte_tokenizer())
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        source = directory / "hf" / name
        if source.exists():
            (directory / name).write_bytes(source.read_bytes())
    base = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    save_file(base, directory / "base.safetensors", {"format": "pt"})
    (directory / "aligned").mkdir()
    aligned = {}
    for name in NAMES:
        aligned[name] = {
            key: (tensor.float() + 0.05 * torch.randn(tensor.shape)).to(dtype)
            for key, tensor in base.items()
        }
        path = directory / f"aligned/{name}.safetensors"
        save_file(aligned[name], path, {"format": "pt"})
        if name != "fin":
            out = directory / f"avs/{name}.safetensors"
            extract(plan_extract(str(directory / "base.safetensors"), str(path), out))
    lines = [json.dumps(item) for item in items()]
    (directory / "items.jsonl").write_text("\n".join(lines) + "\n")
    (directory / "avops.toml").write_text(TOML)
    return SmallProject(directory, base, aligned)
