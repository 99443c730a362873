"""Planning an extraction with transforms: every byte of every output, from headers."""

from __future__ import annotations

import dataclasses
import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from avops.disk import (
    Checkpoint,
    Staging,
    Tensor,
    Vector,
    check_distinct,
    check_vector,
    fingerprint,
    open_base,
    open_vector,
    touched,
    vector_notes,
)
from avops.disk.staging import check_space
from avops.disk.vector import BASE_KEY, BASE_NAME_KEY, KIND_KEY, PARTIAL_KEY
from avops.dtypes import F32, DType
from avops.errors import MismatchError, OutputError, UserError
from avops.stream.layout import Layout, index_file, is_directory, new_layout
from avops.stream.plan import Input, Output, Plan, Range, Segment, TermRange
from avops.stream.record import leftover_notes, shown_path
from avops.stream.segments import Inputs, part_aligned, values_of
from avops.stream.transforms import Transforms

TRANSFORMS_KEY = "avops.transforms"
_ALIGNED_KEY, _PRINT_KEY = "avops.aligned", "avops.aligned_fingerprint"


@dataclass(frozen=True)
class Extraction:
    """What to extract: one output for each of ``aligned``, and how.

    aligned: aligned checkpoints, LoRA adapters, or delta files. dtype: of the differences, or of
    an adapter's factors.
    """

    base: str
    aligned: tuple[str, ...]
    outs: tuple[Path, ...]
    transforms: Transforms
    dtype: DType = F32
    force: bool = False


@dataclass(frozen=True)
class Opened:
    """The inputs, found to fit. tensors: of the base, those that a vector changes, in its order."""

    base: Checkpoint
    vectors: tuple[Vector, ...]
    tensors: tuple[Tensor, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Target:
    """One output: its path, the files of weights in it, what it records, and its index."""

    path: Path
    outputs: tuple[Output, ...]
    metadata: Mapping[str, str]
    index: tuple[tuple[str, bytes], ...] = ()


@dataclass(frozen=True)
class TransformPlan:
    """An extraction decided to the last byte.

    plan: its outputs are those of the first target; the others' have their places and sizes, too.
    """

    extraction: Extraction
    targets: tuple[Target, ...]
    plan: Plan
    notes: tuple[str, ...]

    def staging(self, target: Target) -> Staging:
        """Where ``target`` is written before it is published."""
        inputs = [item.path for item in self.plan.inputs]
        directory = is_directory(target.path)
        return Staging(target.path, directory=directory, force=self.extraction.force, inputs=inputs)


def plan_transform(extraction: Extraction) -> TransformPlan:
    """Decide every byte of ``extraction``, whose outputs are delta files. Writes nothing.

    Raises CheckpointError, MismatchError, RecipeError or OutputError.
    """
    outs = extraction.outs
    directory = is_directory(outs[0])
    if any(is_directory(out) != directory for out in outs):
        raise OutputError(
            f"{', '.join(map(str, outs))}: files and directories, expected one kind for all"
        )
    opened = open_inputs(extraction)
    layouts, metadata = [], []
    for number, out in enumerate(outs):
        found = {KIND_KEY: "delta", **recorded(extraction, opened, number)}
        if len(opened.tensors) < len(touched(opened.base)):
            found[PARTIAL_KEY] = "true"
        metadata.append(found)
        name = None if directory else out.name
        layouts.append(new_layout(opened.base, opened.tensors, name, extraction.dtype, found))
    layouts = _same_places(layouts)
    inputs, segments = plan_segments(opened, layouts[0])
    targets = tuple(
        Target(out, layout.outputs, found, index_file(layout))
        for out, layout, found in zip(outs, layouts, metadata, strict=True)
    )
    plan = TransformPlan(
        extraction, targets, Plan(inputs, layouts[0].outputs, segments), opened.notes
    )
    return checked(plan, plan.plan.bytes_written)


def checked(plan: TransformPlan, nbytes: int) -> TransformPlan:
    """``plan`` with notes on its outputs, of ``nbytes`` bytes each, which may be written.

    Raises OutputError.
    """
    stagings = [plan.staging(target) for target in plan.targets]
    for staging in stagings:
        staging.check(nbytes)
    check_space(stagings, nbytes)
    leftovers = (text for staging in stagings for text in leftover_notes(staging))
    return dataclasses.replace(plan, notes=(*plan.notes, *leftovers))


def open_inputs(extraction: Extraction) -> Opened:
    """Open base and vectors, and refuse what does not fit, or cannot be asked for."""
    aligned, transforms = extraction.aligned, extraction.transforms
    if transforms.sign_elect and len(aligned) < 2:
        raise UserError(
            f"--sign-elect with {' '.join(aligned)} alone, expected two or more ALIGNED: signs are "
            "elected among vectors"
        )
    if len(aligned) > 1 and not transforms.sign_elect:
        raise UserError(
            f"{len(aligned)} ALIGNED ({' '.join(aligned)}) without --sign-elect, expected one: "
            "other transforms take each vector by itself, in a command of its own"
        )
    _check_apart(extraction.outs)
    base = open_base(extraction.base)
    vectors = tuple(open_vector(name_of(path), path) for path in aligned)
    check_distinct(vectors)
    notes: tuple[str, ...] = ()
    for path, vector in zip(aligned, vectors, strict=True):
        check_vector(base, vector)
        notes += vector_notes(base, vector)
        if vector.base_fingerprint not in (None, fingerprint(base)):
            notes += (f"{path} was extracted from another base than {extraction.base}: a transfer",)
    tensors = tuple(t for t in touched(base) if any(t.name in v.parts for v in vectors))
    if not tensors:
        raise MismatchError(
            f"{extraction.base}: holds no floating tensor that {' or '.join(aligned)} changes, so "
            "there is no difference to extract; expected a checkpoint with BF16, F16 or F32 weights"
        )
    return Opened(base, vectors, tensors, notes)


def name_of(path: str) -> str:
    """What the vector at ``path`` is called: its last name, or its directory's if that is no name.

    ``runs/med/model.safetensors`` is ``med``.
    """
    given = Path(path)
    if given.name in ("model.safetensors", "adapter_model.safetensors"):
        given = given.absolute().parent
    return given.name.removesuffix(".safetensors") or given.resolve().name


def _check_apart(outs: Sequence[Path]) -> None:
    seen: set[str] = set()
    for out in outs:
        real = os.path.realpath(out)
        if real in seen:
            raise OutputError(
                f"{out}: the output of two inputs, expected one for each; write {{name}} into -o, "
                "and give inputs of the same name directories of their own names"
            )
        seen.add(real)


def recorded(extraction: Extraction, opened: Opened, number: int) -> dict[str, str]:
    """What the output of vector ``number`` says of where it comes from."""
    from avops.version import __version__

    path, vector = extraction.aligned[number], opened.vectors[number]
    text = extraction.transforms.text(number, len(opened.vectors))
    metadata = {
        "avops.version": __version__,
        BASE_NAME_KEY: shown_path(extraction.base),
        BASE_KEY: fingerprint(opened.base),
        _ALIGNED_KEY: shown_path(path),
        _PRINT_KEY: fingerprint(vector),
    }
    if vector.kind == "delta":
        # Of a delta it is the aligned checkpoint that counts, and what was done before.
        kept = {
            key: vector.metadata[key]
            for key in (_ALIGNED_KEY, _PRINT_KEY)
            if key in vector.metadata
        }
        metadata |= {**kept, "avops.delta": shown_path(path)}
        before = vector.metadata.get(TRANSFORMS_KEY)
        text = f"{before}, {text}" if before else text
    if extraction.transforms.sign_elect:
        metadata["avops.elected_among"] = " ".join(map(shown_path, extraction.aligned))
        metadata["avops.elected_fingerprints"] = " ".join(map(fingerprint, opened.vectors))
    metadata[TRANSFORMS_KEY] = text
    return metadata


def _same_places(layouts: Sequence[Layout]) -> list[Layout]:
    """``layouts``, which differ in metadata only, with headers padded to one size.

    So the windows of all outputs hold the same elements, and inputs are read once for all.
    """
    sizes = [max(map(len, prefixes)) for prefixes in _prefixes(layouts)]
    found = []
    for layout in layouts:
        extra = [size - len(out.prefix) for size, out in zip(sizes, layout.outputs, strict=True)]
        outputs = tuple(_padded(out, more) for out, more in zip(layout.outputs, extra, strict=True))
        places = {
            name: dataclasses.replace(place, offset=place.offset + extra[place.output])
            for name, place in layout.places.items()
        }
        found.append(dataclasses.replace(layout, outputs=outputs, places=places))
    return found


def _prefixes(layouts: Sequence[Layout]) -> list[tuple[bytes, ...]]:
    return list(zip(*([out.prefix for out in layout.outputs] for layout in layouts), strict=True))


def _padded(output: Output, extra: int) -> Output:
    """``output`` with ``extra`` spaces after its header, as the format allows."""
    header = output.prefix[8:] + b" " * extra
    prefix = struct.pack("<Q", len(header)) + header
    return dataclasses.replace(output, prefix=prefix, size=output.size + extra)


def plan_segments(
    opened: Opened, layout: Layout | None
) -> tuple[tuple[Input, ...], tuple[Segment, ...]]:
    """Inputs and segments: of each tensor the differences of all vectors that change it.

    Without a ``layout`` the segments have no place in an output.
    """
    inputs = Inputs()
    inputs.add(opened.base)
    first = [inputs.add(vector.checkpoint) for vector in opened.vectors]
    segments = []
    for tensor in opened.tensors:
        terms = []
        for number, vector in enumerate(opened.vectors):
            part = vector.parts.get(tensor.name)
            if part is not None:
                values = values_of(part, first[number], 0)
                terms.append(TermRange(values, vector.name, number, (1.0,), part_aligned(part)))
        place = layout.places[tensor.name] if layout else None
        segments.append(
            Segment(
                operation="diff",
                tensor=tensor.name,
                count=tensor.count,
                base=Range(tensor.shard, tensor.offset, tensor.dtype),
                terms=tuple(terms),
                output=place.output if place else 0,
                offset=place.offset if place else 0,
                dtype=place.dtype if place else F32,
            )
        )
    return inputs.files, tuple(segments)
