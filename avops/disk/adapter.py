"""LoRA adapters of PEFT: ``adapter_config.json`` beside ``adapter_model.safetensors``.

Each adapted module stores two factors, and the module's weight moves by scale · B@A. Besides
them an adapter may hold whole tensors (modules_to_save, biases, resized embeddings). Source:
PEFT 0.21, whose names older versions wrap in the adapter's own name.
"""

from __future__ import annotations

import dataclasses
import os
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from avops.disk.adapter_config import CONFIG, AdapterConfig, read_adapter_config
from avops.disk.checkpoint import INDEX, SINGLE, Checkpoint, Tensor, open_checkpoint
from avops.disk.parts import LowRank, Part, Stored
from avops.errors import CheckpointError

WEIGHTS = "adapter_model.safetensors"
_PICKLE = "adapter_model.bin"
_PREFIX = "base_model.model."
_LINEAR = ("lora_A", "lora_B")
_EMBEDDING = ("lora_embedding_A", "lora_embedding_B")


@dataclass(frozen=True)
class Adapter:
    """An opened adapter. parts: by the base's tensor names.

    copies: base tensors that it carries along unchanged, by the base's names.
    """

    checkpoint: Checkpoint
    config: AdapterConfig
    parts: Mapping[str, Part]
    copies: Mapping[str, Tensor]


@dataclass
class _Found:
    """What the names in an adapter's file say. factors: module to factor name to tensor."""

    factors: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    whole: dict[str, Tensor] = field(default_factory=dict)
    copies: dict[str, Tensor] = field(default_factory=dict)


def adapter_directory(path: Path) -> Path | None:
    """The directory of the adapter that ``path`` is (or is the weights of), None for others.

    A directory with a whole checkpoint is that checkpoint, even if it holds an adapter, too.
    """
    directory = path.parent if path.name == WEIGHTS else path
    if not os.path.exists(directory / CONFIG):
        return None
    if directory is path and any(os.path.exists(path / name) for name in (INDEX, SINGLE)):
        return None
    return directory


def open_adapter(directory: Path) -> Adapter:
    """Open the adapter in ``directory`` (settings and header only).

    Raises CheckpointError for a malformed adapter, for one that is more than low-rank differences
    and whole tensors, and for tensors whose meaning is not known.
    """
    if not (directory / CONFIG).exists():
        raise CheckpointError(
            f"{directory}: no {CONFIG}, expected the directory that PEFT's save_pretrained wrote"
        )
    config = read_adapter_config(directory / CONFIG)
    if not (directory / WEIGHTS).exists():
        raise CheckpointError(_no_weights(directory))
    checkpoint = dataclasses.replace(open_checkpoint(directory / WEIGHTS), path=directory)
    found = _sort(checkpoint.tensors.values(), directory)
    parts: dict[str, Part] = {}
    for module, factors in found.factors.items():
        parts[f"{module}.weight"] = _low_rank(module, factors, config)
    for name, tensor in found.whole.items():
        if name in parts:
            raise CheckpointError(
                f"{directory}: tensor {tensor.name!r} is a whole weight whose module also has "
                "LoRA factors, expected one of the two; save the adapter again with PEFT"
            )
        parts[name] = Stored(tensor, aligned=True)
    if not parts:
        raise CheckpointError(f"{directory / WEIGHTS}: holds no tensor, expected LoRA factors")
    return Adapter(checkpoint, config, parts, found.copies)


def _no_weights(directory: Path) -> str:
    if (directory / _PICKLE).exists():
        code = (
            "import torch, safetensors.torch as s; "
            f"p = torch.load('{_PICKLE}', map_location='cpu', weights_only=True); "
            f"s.save_file({{k: v.contiguous() for k, v in p.items()}}, '{WEIGHTS}')"
        )
        return (
            f"{directory / _PICKLE}: a PyTorch pickle, which can run code when loaded, expected "
            f"{WEIGHTS}; convert it in a sandbox with: "
            f'cd {shlex.quote(str(directory))} && python -c "{code}"'
        )
    return f"{directory}: has {CONFIG} but no {WEIGHTS}; download the adapter again"


def _sort(tensors: Iterable[Tensor], directory: Path) -> _Found:
    """The adapter's tensors by what they are."""
    found = _Found()
    for tensor in tensors:
        steps = tensor.name.removeprefix(_PREFIX).split(".")
        lora = next((i for i, step in enumerate(steps) if step.startswith("lora_")), None)
        if lora is not None:
            module, factor = ".".join(steps[:lora]), _factor(tensor, steps[lora:], directory)
            place, key = found.factors.setdefault(module, {}), factor
        else:
            name, copied = _plain(tensor, steps, directory)
            place, key = (found.copies if copied else found.whole), name
        if key in place:
            raise CheckpointError(
                f"{directory}: tensors {place[key].name!r} and {tensor.name!r} stand for the same "
                "thing, expected one adapter in the file; save each adapter on its own"
            )
        place[key] = tensor
    return found


def _factor(tensor: Tensor, steps: list[str], directory: Path) -> str:
    """Which factor ``tensor`` is, by its name from ``lora_`` on."""
    factor, rest = steps[0], steps[1:]
    if factor == "lora_magnitude_vector":
        raise CheckpointError(
            f"{directory}: tensor {tensor.name!r} is a magnitude of DoRA, which also rescales the "
            "base's rows, expected a plain LoRA; merge it into its base with PEFT "
            "(model.merge_and_unload().save_pretrained(...)) and use the result"
        )
    # After the factor comes the adapter's own name (older versions), and "weight" for modules.
    if factor in _EMBEDDING and len(rest) <= 1:
        return factor
    if factor in _LINEAR and len(rest) <= 2 and rest[-1:] == ["weight"]:
        return factor
    raise CheckpointError(
        f"{directory}: tensor {tensor.name!r} is of no kind that avops knows, expected factors "
        f"named {', '.join((*_LINEAR, *_EMBEDDING))}; merge the adapter into its base with PEFT"
    )


def _plain(tensor: Tensor, steps: list[str], directory: Path) -> tuple[str, bool]:
    """The base's name for the whole tensor ``tensor``, and whether it is a copy of the base's."""
    if any(step.startswith(("token_adapter", "trainable_tokens")) for step in steps):
        raise CheckpointError(
            f"{directory}: tensor {tensor.name!r} holds single trained rows of an embedding, "
            "expected whole tensors or LoRA factors; merge the adapter into its base with PEFT"
        )
    # A wrapped module's own weight is the base's; its bias may have been trained (bias = ...).
    copied = "original_module" in steps or ("base_layer" in steps and steps[-1] != "bias")
    kept = [step for step in steps if step not in ("original_module", "base_layer")]
    if "modules_to_save" in kept:
        place = kept.index("modules_to_save")
        del kept[place : place + (2 if kept[place + 1 : place + 2] == ["default"] else 1)]
    elif kept[-2:-1] == ["default"]:
        del kept[-2]
    return ".".join(kept), copied


def _low_rank(module: str, factors: Mapping[str, Tensor], config: AdapterConfig) -> LowRank:
    """Δ of ``module``, checked against the settings."""
    where = f"{config.path.parent}: module {module!r}"
    names = _EMBEDDING if factors.keys() & set(_EMBEDDING) else _LINEAR
    if factors.keys() != set(names):
        raise CheckpointError(
            f"{where} has {', '.join(sorted(factors))}, expected {' and '.join(names)}; "
            "the file is incomplete, download the adapter again"
        )
    a, b = (factors[name] for name in names)
    for tensor in (a, b):
        if not tensor.dtype.computable or len(tensor.shape) < 2 or 0 in tensor.shape:
            raise CheckpointError(
                f"{where}: factor {tensor.name!r} is {tensor}, expected a BF16, F16 or F32 matrix "
                "that is not empty (ZeRO-3 and FSDP must gather it before saving); save it again"
            )
    rank, columns, rows = config.rank_of(module), a.shape[1:], b.shape[0]
    if len(a.shape) != len(b.shape) or any(size != 1 for size in b.shape[2:]):
        raise CheckpointError(
            f"{where}: factors A {a} and B {b}, expected two matrices, or a convolution whose B "
            "is 1×1; merge the adapter into its base with PEFT"
        )
    if a.shape[0] != rank or b.shape[1] != rank:
        raise CheckpointError(
            f"{where}: factors A {a} and B {b}, but {config.path.name} gives rank {rank}, "
            f"expected A [{rank}, n] and B [m, {rank}] (a grouped convolution is not supported); "
            "the two files belong to different adapters, or rank_pattern lacks the module"
        )
    matrix = len(a.shape) == 2
    transposed = matrix and (names is _EMBEDDING or config.transposed)
    shape = (*columns, rows) if transposed else (rows, *columns)
    return LowRank(a, b, rank, config.scale_of(module), transposed, shape)
