"""Tiny random-weight models of many architectures: what each of them puts in a scorer's way."""

from __future__ import annotations

from typing import Any

import torch

from avops.score import new_model
from score.conftest import ARCHITECTURES, SMALL

WINDOWED = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 12}

EXPERTS = {
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}

PACKABLE: dict[str, dict[str, Any]] = ARCHITECTURES | {
    "mistral-full": SMALL | {"model_type": "mistral", "sliding_window": None},
    "qwen2-window": SMALL | {"model_type": "qwen2", "use_sliding_window": True} | WINDOWED,
    "qwen3": SMALL | {"model_type": "qwen3"},
    "gemma3": SMALL
    | {"model_type": "gemma3_text", "query_pre_attn_scalar": 8, "final_logit_softcapping": 2.0}
    | WINDOWED,
    "phi3": SMALL | {"model_type": "phi3", "sliding_window": 12, "pad_token_id": 0},
    "phi": SMALL | {"model_type": "phi", "partial_rotary_factor": 0.5},
    "gpt_neox": SMALL | {"model_type": "gpt_neox", "rotary_pct": 0.5},
    "opt": {
        "model_type": "opt",
        "vocab_size": 400,
        "hidden_size": 32,
        "word_embed_proj_dim": 32,
        "ffn_dim": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
        "init_std": 0.15,
    },
    "granite": SMALL
    | {"model_type": "granite", "logits_scaling": 3.0, "attention_multiplier": 0.3},
    "cohere2": SMALL | {"model_type": "cohere2", "logit_scale": 0.5} | WINDOWED,
    "mixtral": SMALL | {"model_type": "mixtral", "num_local_experts": 4},
    "qwen2_moe": SMALL | {"model_type": "qwen2_moe"} | EXPERTS,
    "qwen3_moe": SMALL | {"model_type": "qwen3_moe"} | EXPERTS,
}
"""Everything here must be scored packed."""

OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "bloom": (
        {"model_type": "bloom", "vocab_size": 400, "hidden_size": 32, "n_layer": 2, "n_head": 4},
        "BloomForCausalLM does not go through transformers' AttentionInterface",
    ),
    "mamba": (
        {"model_type": "mamba", "vocab_size": 400, "hidden_size": 32, "num_hidden_layers": 2},
        "MambaForCausalLM does not go through transformers' AttentionInterface",
    ),
    "gpt_oss": (
        SMALL | {"model_type": "gpt_oss", "num_local_experts": 4, "sliding_window": 12},
        "its attention takes 's_aux'",
    ),
    "lfm2": (
        SMALL | {"model_type": "lfm2", "layer_types": ["conv", "full_attention"]},
        "it has layers of type conv",
    ),
}
"""Configs that cannot be packed, and the reason that is given."""


def make(name: str, **changes: Any) -> Any:
    """A model of PACKABLE or OTHERS in eval mode, always with the same random weights."""
    config = PACKABLE[name] if name in PACKABLE else OTHERS[name][0]
    torch.manual_seed(7)
    return new_model(config | changes).eval()
