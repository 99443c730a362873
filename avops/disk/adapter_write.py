"""Writing LoRA adapters that PEFT loads: which tensors can be factors, names, and settings.

Headers decide. A base tensor becomes factors if it is the matrix of a linear layer as far as its
name and shape tell; what an adapter would hold another way, or not at all, is left out and named
with the reason. Source: PEFT 0.21.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from avops.disk.adapter import WEIGHTS
from avops.disk.adapter_config import CONFIG
from avops.disk.checkpoint import Checkpoint, Tensor
from avops.disk.sidecars import sidecars
from avops.errors import MismatchError

__all__ = ["CONFIG", "WEIGHTS", "Layers", "adapter_config", "factor_names", "linear_layers"]

_SUFFIX = ".weight"
# Matrices that look rows up, by the last step of the module's name.
_EMBEDDINGS = ("wte", "wpe", "embed", "shared")
# Gates that choose experts: parameters of modules that PEFT does not wrap.
_ROUTERS = ("gate", "router")
_HEADS = ("lm_head", "embed_out", "output")


@dataclass(frozen=True)
class Layers:
    """modules: tensor to module, of those that become factors. left_out: tensor to reason.

    transposed: weights are stored [in, out], as GPT-2's are. task: PEFT's task_type.
    """

    modules: Mapping[str, str]
    left_out: Mapping[str, str]
    transposed: bool
    task: str | None


def linear_layers(base: Checkpoint, tensors: Iterable[Tensor]) -> Layers:
    """Which of ``tensors``, all of ``base``, become factors.

    Raises MismatchError when some matrices are stored [in, out], others [out, in].
    """
    config = _config(base)
    modules, left_out = {}, {}
    for tensor in tensors:
        reason = _reason(tensor, tied=config.get("tie_word_embeddings") is True)
        if reason is None:
            modules[tensor.name] = tensor.name.removesuffix(_SUFFIX)
        else:
            left_out[tensor.name] = reason
    names = config.get("architectures")
    causal = isinstance(names, list) and all(str(name).endswith("ForCausalLM") for name in names)
    task = "CAUSAL_LM" if causal and names else None
    return Layers(modules, left_out, _transposed(base, modules), task)


def _config(base: Checkpoint) -> dict[str, Any]:
    """The base's config.json, empty where there is none that can be read."""
    files, _ = sidecars(base.directory, known_only=True)
    try:
        config = json.loads(files["config.json"])
    except (KeyError, ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}


def _reason(tensor: Tensor, *, tied: bool) -> str | None:
    """Why ``tensor`` becomes no factors; None if it does."""
    if len(tensor.shape) != 2 or 0 in tensor.shape:
        return "no matrix"
    if not tensor.name.endswith(_SUFFIX) or tensor.name == _SUFFIX:
        return "no module's weight"
    last = tensor.name.removesuffix(_SUFFIX).split(".")[-1]
    if last in _HEADS:
        return "tied to the embedding" if tied else None
    if last in _EMBEDDINGS or "embed" in last:
        return "an embedding"
    return "a gate of experts" if last in _ROUTERS else None


def _transposed(base: Checkpoint, modules: Mapping[str, str]) -> bool:
    """Whether weights are [in, out]: a bias has as many elements as there are outputs."""
    seen: dict[bool, str] = {}
    for name, module in modules.items():
        bias, (rows, columns) = base.tensors.get(f"{module}.bias"), base.tensors[name].shape
        if bias is not None and rows != columns and bias.shape in ((rows,), (columns,)):
            seen.setdefault(bias.shape == (columns,), name)
    if len(seen) > 1:
        raise MismatchError(
            f"{base.path}: {seen[True]!r} is stored [in, out] and {seen[False]!r} [out, in], as "
            "their biases tell, but an adapter has one fan_in_fan_out for all its modules; "
            "extract a delta file instead"
        )
    return True in seen


def factor_names(module: str) -> tuple[str, str]:
    """The names of A and B of ``module`` in an adapter's file."""
    start = f"base_model.model.{module}.lora_"
    return f"{start}A.weight", f"{start}B.weight"


def adapter_config(base: Checkpoint, layers: Layers, rank: int, base_name: str) -> bytes:
    """The text of adapter_config.json for factors whose product is Δ itself: alpha is the rank."""
    config = {
        "peft_type": "LORA",
        "task_type": layers.task,
        "base_model_name_or_path": base_name,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": layers.transposed,
        "use_rslora": False,
        "target_modules": _targets(base, layers),
    }
    return json.dumps(config, indent=2, ensure_ascii=False).encode() + b"\n"


def _targets(base: Checkpoint, layers: Layers) -> list[str]:
    """Last steps of names where they mean these modules only, whole names otherwise."""
    chosen = set(layers.modules.values())
    others = {name.rpartition(".")[0] for name in base.tensors} - chosen
    ambiguous = {module.split(".")[-1] for module in others}
    last = {module: module.split(".")[-1] for module in chosen}
    return sorted({module if end in ambiguous else end for module, end in last.items()})
