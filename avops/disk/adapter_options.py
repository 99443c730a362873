"""The options of PEFT's LoraConfig: which of them make an adapter more than base + scale·B@A.

Source: PEFT 0.21. An option that is in neither table is refused unless it is off: it came later,
and may change what the factors mean.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from avops.errors import CheckpointError

_PLAIN_LORA = (
    "merge it into its base with PEFT (model.merge_and_unload().save_pretrained(...)) and use the "
    "result as an aligned checkpoint"
)
# Options that make the adapter more than base + scale·B@A where they are on, and the way out.
_REFUSED: Mapping[str, tuple[str, str]] = {
    "use_dora": ("DoRA, which also rescales the base's rows", _PLAIN_LORA),
    "alora_invocation_tokens": (
        "an activated LoRA (aLoRA), which acts on some tokens only, so that no weights equal it",
        "train a plain LoRA",
    ),
    "alora_invocation_string": (
        "an activated LoRA (aLoRA), which acts on some tokens only, so that no weights equal it",
        "train a plain LoRA",
    ),
    "layer_replication": (
        "a model with repeated layers, which is another model than the base",
        _PLAIN_LORA,
    ),
    "target_parameters": ("LoRA on bare parameters (experts in one tensor)", _PLAIN_LORA),
    "trainable_token_indices": ("single trained rows of the embedding", _PLAIN_LORA),
    "lora_bias": ("a bias of its own on B", _PLAIN_LORA),
    "use_qalora": ("QALoRA, whose factors pool the inputs of quantised weights", _PLAIN_LORA),
    "use_bdlora": ("BD-LoRA, whose factors are block-diagonal", _PLAIN_LORA),
    "kasa_config": (
        "KaSA, which truncates the base and puts a diagonal between the factors",
        _PLAIN_LORA,
    ),
    "arrow_config": ("Arrow routing, which picks experts per token", "use one of its experts"),
    "monteclora_config": ("MonteCLoRA, which samples its weights", _PLAIN_LORA),
    "velora_config": ("VeLoRA", _PLAIN_LORA),
    "megatron_config": ("Megatron layers, named otherwise than the base's", _PLAIN_LORA),
    "enable_lora": ("the merged layers of PEFT 0.2", _PLAIN_LORA),
}
# Options that do not change what the saved factors mean.
_HARMLESS = {
    "auto_mapping",
    "base_model_class",
    "base_model_name_or_path",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_dropout",
    "lora_ga_config",
    "megatron_core",
    "merge_weights",
    "modules_to_save",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
}
_READ = {
    "alpha_pattern",
    "bias",
    "fan_in_fan_out",
    "init_lora_weights",
    "lora_alpha",
    "r",
    "rank_pattern",
    "use_rslora",
}
# Initialisations that leave the base as it is; the others fold a part of it into the factors.
_PLAIN_INITS = ("gaussian", "eva", "orthogonal", "mica")


def refuse_options(data: Mapping[str, Any], path: Path) -> None:
    """Refuse settings whose adapter is more than base + scale·B@A.

    Raises CheckpointError naming the option, why, and the way out.
    """
    kind = data.get("peft_type")
    if kind != "LORA":
        raise CheckpointError(
            f'{path}: peft_type is {json.dumps(kind)[:100]}, expected "LORA", whose difference '
            f"is a product of two factors; {_PLAIN_LORA}"
        )
    for key, (what, remedy) in _REFUSED.items():
        if data.get(key) not in (None, False, [], {}, ""):
            raise CheckpointError(f"{path}: {key} is on: {what}; {remedy}")
    init = data.get("init_lora_weights", True)
    if not (isinstance(init, bool) or init in _PLAIN_INITS):
        raise CheckpointError(
            f"{path}: init_lora_weights is {json.dumps(init)[:100]}: B@A starts from a part that "
            "was taken out of the base's weights, so it does not belong to this base; save the "
            "adapter again with PEFT's save_pretrained(path_initial_model_for_weight_conversion="
            "...), or, if you kept the changed base, give that and set init_lora_weights to true"
        )
    known = _HARMLESS | _READ | _REFUSED.keys()
    for key, value in data.items():
        if key not in known and value not in (None, False, [], {}, ""):
            raise CheckpointError(
                f"{path}: {key} is {json.dumps(value)[:100]}, an option that avops does not know "
                "and that may change what the factors mean, expected it to be off; update avops, "
                "or take the key out of a copy if it does not"
            )
