"""Planning extract --rank: the factors of every matrix, and what is no matrix of a layer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
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

    shapes: of the base's tensors.
    """

    plan: TransformPlan
    layers: Layers
    offsets: tuple[Mapping[str, int], ...]
    shapes: Mapping[str, tuple[int, ...]]

    @property
    def rank(self) -> int:
        """Of every product."""
        return self.plan.extraction.transforms.rank or 1


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
    rank = extraction.transforms.rank or 1
    listed = list(_listed(opened, layers, rank, extraction.dtype))
    config = adapter_config(opened.base, layers, rank, shown_path(extraction.base))
    targets, offsets = [], []
    for number, out in enumerate(extraction.outs):
        metadata = recorded(extraction, opened, number)
        prefix, places = encode_header(listed, {"format": "pt", **metadata})
        offsets.append(places)
        size = len(prefix) + sum(math.prod(shape) * dtype.size for _, dtype, shape in listed)
        output = Output(WEIGHTS, prefix, size)
        targets.append(Target(out, (output,), metadata, ((CONFIG, config),)))
    inputs, segments = plan_segments(opened, None)
    plan = TransformPlan(
        extraction, tuple(targets), Plan(inputs, (), segments), (*opened.notes, *_notes(layers))
    )
    shapes = {tensor.name: tensor.shape for tensor in opened.tensors}
    return AdapterPlan(checked(plan, targets[0].outputs[0].size), layers, tuple(offsets), shapes)


def _listed(
    opened: Opened, layers: Layers, rank: int, dtype: DType
) -> Iterator[tuple[str, DType, tuple[int, ...]]]:
    """The factors in the order of the file."""
    for tensor in opened.tensors:
        module = layers.modules.get(tensor.name)
        if module is None:
            continue
        outputs, inputs = tensor.shape[::-1] if layers.transposed else tensor.shape
        name_a, name_b = factor_names(module)
        yield name_a, dtype, (rank, inputs)
        yield name_b, dtype, (outputs, rank)


def _notes(layers: Layers) -> tuple[str, ...]:
    """What became no factors, by reason."""
    names: dict[str, list[str]] = {}
    for name, reason in layers.left_out.items():
        names.setdefault(reason, []).append(name)
    return tuple(
        f"left out ({reason}): {len(found)} tensors, {', '.join(found[:3])}"
        f"{', ...' if len(found) > 3 else ''}; their differences are not in the adapter"
        for reason, found in names.items()
    )
