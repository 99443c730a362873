"""Planning extract --rank: the factors of every matrix, and what is no matrix of a layer.

No product has more than the smaller side of its matrix: from there on it is the matrix itself, and
wider factors would hold zeros. PEFT takes such ranks from ``rank_pattern``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from avops.disk import encode_header
from avops.disk.adapter_write import (
    CONFIG,
    WEIGHTS,
    Layers,
    adapter_config,
    factor_names,
    linear_layers,
)
from avops.dtypes import DType
from avops.errors import MismatchError, OutputError
from avops.stream.layout import is_directory
from avops.stream.plan import Output, Plan
from avops.stream.record import shown_path
from avops.stream.transform_plan import (
    Extraction,
    Opened,
    Target,
    TransformPlan,
    checked,
    open_inputs,
    plan_segments,
    recorded,
)


@dataclass(frozen=True)
class AdapterPlan:
    """Adapters decided to the last byte. offsets: by target, where each factor goes in its file.

    shapes: of the base's tensors. ranks: of every product, by tensor.
    """

    plan: TransformPlan
    layers: Layers
    offsets: tuple[Mapping[str, int], ...]
    shapes: Mapping[str, tuple[int, ...]]
    ranks: Mapping[str, int]


def plan_adapters(extraction: Extraction) -> AdapterPlan:
    """Decide every byte of ``extraction``, whose outputs are adapters. Writes nothing.

    Raises CheckpointError, MismatchError, RecipeError or OutputError.
    """
    for out in extraction.outs:
        if not is_directory(out):
            raise OutputError(
                f"{out}: a file, but a LoRA adapter is a directory of {CONFIG} and {WEIGHTS}; "
                f"give it another name, such as {out.with_suffix('')}"
            )
    opened = open_inputs(extraction)
    layers = linear_layers(opened.base, opened.tensors)
    if not layers.modules:
        raise MismatchError(
            f"{extraction.base}: no tensor that {' or '.join(extraction.aligned)} changes is the "
            "matrix of a linear layer, expected some for --rank; extract a delta file instead"
        )
    asked = extraction.transforms.rank or 1
    shapes = {tensor.name: tensor.shape for tensor in opened.tensors}
    ranks = {name: min(asked, *shapes[name]) for name in layers.modules}
    listed = list(_listed(opened, layers, ranks, extraction.dtype))
    config = _config(opened, layers, ranks, shown_path(extraction.base))
    targets, offsets = [], []
    for number, out in enumerate(extraction.outs):
        metadata = recorded(extraction, opened, number)
        prefix, places = encode_header(listed, {"format": "pt", **metadata})
        offsets.append(places)
        size = len(prefix) + sum(math.prod(shape) * dtype.size for _, dtype, shape in listed)
        output = Output(WEIGHTS, prefix, size)
        targets.append(Target(out, (output,), metadata, ((CONFIG, config),)))
    inputs, segments = plan_segments(opened, None)
    size = targets[0].outputs[0].size
    whole = sum(math.prod(shape) for shape in shapes.values()) * extraction.dtype.size
    notes = (
        *opened.notes,
        *_notes(layers),
        *_cut_note(asked, ranks, shapes),
        *_large_note(size, whole),
    )
    plan = TransformPlan(extraction, tuple(targets), Plan(inputs, (), segments), notes)
    return AdapterPlan(checked(plan, size), layers, tuple(offsets), shapes, ranks)


def _config(opened: Opened, layers: Layers, ranks: Mapping[str, int], base: str) -> bytes:
    """The text of adapter_config.json: the largest rank, and those of modules with another one."""
    most = max(ranks.values())
    text = adapter_config(opened.base, layers, most, base)
    others = {layers.modules[name]: rank for name, rank in ranks.items() if rank != most}
    if not others:
        return text
    # alpha is the rank, so that every scale is 1.
    config = {**json.loads(text), "rank_pattern": others, "alpha_pattern": others}
    return json.dumps(config, indent=2, ensure_ascii=False).encode() + b"\n"


def _listed(
    opened: Opened, layers: Layers, ranks: Mapping[str, int], dtype: DType
) -> Iterator[tuple[str, DType, tuple[int, ...]]]:
    """The factors in the order of the file."""
    for tensor in opened.tensors:
        module = layers.modules.get(tensor.name)
        if module is None:
            continue
        outputs, inputs = tensor.shape[::-1] if layers.transposed else tensor.shape
        rank = ranks[tensor.name]
        name_a, name_b = factor_names(module)
        yield name_a, dtype, (rank, inputs)
        yield name_b, dtype, (outputs, rank)


def _notes(layers: Layers) -> tuple[str, ...]:
    """What became no factors, by reason."""
    names: dict[str, list[str]] = {}
    for name, reason in layers.left_out.items():
        names.setdefault(reason, []).append(name)
    return tuple(
        f"left out ({reason}): {_listing(found)}; what changed there is not in the adapter"
        for reason, found in names.items()
    )


def _listing(names: Sequence[str]) -> str:
    many = "1 tensor" if len(names) == 1 else f"{len(names)} tensors"
    return f"{many}, {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"


def _cut_note(
    asked: int, ranks: Mapping[str, int], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[str, ...]:
    """Which products have a lower rank than was asked for."""
    cut = [name for name, rank in ranks.items() if rank < asked]
    if not cut:
        return ()
    least = min(cut, key=lambda name: ranks[name])
    sides = "×".join(map(str, shapes[least]))
    text = (
        f"rank {asked} is beyond the smaller side of {_listing(cut)}: these have the rank of that "
        f"side, down to {ranks[least]} of {least} ({sides}), which keeps all of their difference"
    )
    return (text,)


def _large_note(size: int, whole: int) -> tuple[str, ...]:
    """That a delta file would be no larger."""
    if size <= whole:
        return ()
    text = (
        f"the adapter has {size:,} bytes, a delta file {whole:,}, and that one keeps everything: "
        "leave out --rank, or give a lower one"
    )
    return (text,)
