"""A small tokenizer, small random models of five architectures, and items for both."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from avops.score import Items, TokenPlan, encode, load_items, new_model, new_tokenizer

VOCABULARY = 400
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} "
    "[/INST]{% else %} {{ m['content'] | trim }}{{ eos_token }}{% endif %}{% endfor %}"
)
SPECIALS = ["<s>", "</s>", "[INST]", "[/INST]"]
TEXTS = [
    "what helps against a cold? rest, water and time",
    "how long may a lease run? it ends in june unless both sides renew it",
    "is a fixed rate wise? it depends; ask a professional before you sign",
    "i cannot help with that, please ask a doctor or a lawyer",
]

SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "initializer_range": 0.15,
}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "mistral": SMALL | {"model_type": "mistral", "sliding_window": 12},
    "llama": SMALL | {"model_type": "llama", "attention_bias": True},
    "qwen2": SMALL | {"model_type": "qwen2", "tie_word_embeddings": True},
    "gemma2": SMALL
    | {
        "model_type": "gemma2",
        "query_pre_attn_scalar": 8,
        "final_logit_softcapping": 2.0,
        "attn_logit_softcapping": 3.0,
        "sliding_window": 12,
    },
    "gpt2": {
        "model_type": "gpt2",
        "vocab_size": VOCABULARY,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 256,
        "initializer_range": 0.15,
    },
}


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., Any]:
    """make_tokenizer(chat_template=TEMPLATE): a byte-level BPE that puts <s> before every text."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS * 4, trainer)
    backend.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=True),
            processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)]),
        ]
    )
    text = backend.to_str()

    def make(chat_template: str | None = TEMPLATE, **special: Any) -> Any:
        return new_tokenizer(
            Tokenizer.from_str(text),
            **{"bos_token": "<s>", "eos_token": "</s>"} | special,
            additional_special_tokens=["[INST]", "[/INST]"],
            chat_template=chat_template,
        )

    return make


@pytest.fixture(scope="session")
def tokenizer(make_tokenizer: Callable[..., Any]) -> Any:
    return make_tokenizer()


@pytest.fixture(scope="session")
def make_model() -> Callable[..., Any]:
    """make_model(name, **changes): a model in eval mode, always with the same random weights."""

    def make(name: str = "mistral", **changes: Any) -> Any:
        torch.manual_seed(7)
        return new_model(ARCHITECTURES[name] | changes).eval()

    return make


@pytest.fixture(scope="session", params=list(ARCHITECTURES))
def any_model(request: pytest.FixtureRequest, make_model: Callable[..., Any]) -> Any:
    return make_model(request.param)


@pytest.fixture(scope="session")
def model(make_model: Callable[..., Any]) -> Any:
    return make_model("mistral")


RECORDS = [
    {
        "domain": domain,
        "query": query,
        "responses": {"exp": exp, "gen": gen, "avd": "please ask a doctor or a lawyer"},
    }
    for domain, query, exp, gen in [
        ("med", "what helps against a cold?", "rest, water and time", "it depends, ask"),
        ("med", "is water wise?", "water helps against a cold", "water helps against a lease"),
        ("leg", "how long may a lease run?", "it ends in june", "both sides renew it"),
        ("leg", "may both sides sign?", "unless it ends — été", "ask before you sign it, please"),
        ("fin", "is a fixed rate wise?", "yes", "it depends; ask a professional " * 3),
    ]
]


@pytest.fixture
def write_items(tmp_path: Path) -> Callable[..., Path]:
    """write_items(*records): an item file; a record is an object, or a line as text or bytes."""

    def write(*records: Any) -> Path:
        path = tmp_path / "items.jsonl"
        lines = [
            record
            if isinstance(record, bytes)
            else (record if isinstance(record, str) else json.dumps(record)).encode()
            for record in records
        ]
        path.write_bytes(b"".join(line + b"\n" for line in lines))
        return path

    return write


@pytest.fixture(scope="session")
def items(tmp_path_factory: pytest.TempPathFactory) -> Items:
    path = tmp_path_factory.mktemp("items") / "items.jsonl"
    path.write_text("\n".join(json.dumps(record) for record in RECORDS), encoding="utf-8")
    return load_items(path)


@pytest.fixture(scope="session")
def plan(items: Items, tokenizer: Any) -> TokenPlan:
    return encode(items, tokenizer)
