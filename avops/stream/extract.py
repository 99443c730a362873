"""extract: write AV = θ_aligned − θ_base, or an adapter's differences, as a delta file."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from avops import env
from avops.disk import (
    RECIPE_NAME,
    Checkpoint,
    Staging,
    Tensor,
    Vector,
    check_vector,
    fingerprint,
    integer_notes,
    open_base,
    open_vector,
    touched,
    vector_notes,
)
from avops.disk.vector import BASE_KEY, BASE_NAME_KEY, KIND_KEY, PARTIAL_KEY
from avops.dtypes import F32, DType
from avops.errors import CheckpointError, MismatchError
from avops.stream.layout import Layout, index_file, is_directory, new_layout
from avops.stream.nonfinite import refuse_nonfinite
from avops.stream.pipeline import Progress, nonfinite_tensors, run
from avops.stream.plan import Input, Plan, Range, Segment, TermRange
from avops.stream.record import dump, leftover_notes, shown_path, with_files
from avops.stream.segments import Inputs, part_aligned, values_of
from avops.stream.sink import StagingSink
from avops.version import __version__


@dataclass(frozen=True)
class ExtractReport:
    """What an extraction did. zeros: differences that are exactly 0."""

    target: Path
    seconds: float
    bytes_read: int
    bytes_written: int
    tensors: int
    elements: int
    zeros: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class ExtractPlan:
    """An extraction decided to the last byte. given: the paths of base and aligned checkpoint."""

    target: Path
    directory: bool
    force: bool
    plan: Plan
    dtype: DType
    given: tuple[Path, Path]
    metadata: Mapping[str, str]
    index: tuple[tuple[str, bytes], ...] = ()
    notes: tuple[str, ...] = ()


def plan_extract(
    base_path: str, aligned_path: str, out: Path, *, dtype: DType = F32, force: bool = False
) -> ExtractPlan:
    """Decide every byte of the extraction. Writes nothing.

    aligned_path: an aligned checkpoint, or a LoRA adapter, of which the tensors that it changes
    are written.
    Raises CheckpointError, MismatchError or OutputError.
    """
    base, vector = open_base(base_path), open_vector("ALIGNED", aligned_path)
    if vector.kind == "delta":
        raise CheckpointError(
            f"{aligned_path}: already an alignment vector, expected an aligned checkpoint or a "
            "LoRA adapter; use it with --av"
        )
    check_vector(base, vector)
    floating = touched(base)
    tensors = [tensor for tensor in floating if tensor.name in vector.parts]
    if not tensors:
        raise MismatchError(
            f"{base_path}: holds no floating tensor that {aligned_path} changes, so there is no "
            "difference to extract; expected a checkpoint with BF16, F16 or F32 weights"
        )
    metadata = {
        KIND_KEY: "delta",
        "avops.version": __version__,
        BASE_NAME_KEY: shown_path(base_path),
        BASE_KEY: fingerprint(base),
        "avops.aligned": shown_path(aligned_path),
        "avops.aligned_fingerprint": fingerprint(vector),
    }
    if len(tensors) < len(floating):
        metadata[PARTIAL_KEY] = "true"
    directory = is_directory(out)
    layout = new_layout(base, tensors, None if directory else out.name, dtype, metadata)
    inputs, segments = _segments(base, vector, tensors, layout)
    plan = Plan(inputs, layout.outputs, segments)
    given = (Path(base_path), Path(aligned_path))
    extract_plan = ExtractPlan(
        out, directory, force, plan, dtype, given, metadata, index_file(layout)
    )
    staging = _staging(extract_plan)
    staging.check(plan.bytes_written)
    notes = (
        *vector_notes(base, vector),
        *integer_notes(base, vector),
        *leftover_notes(staging),
    )
    return dataclasses.replace(extract_plan, notes=notes)


def _segments(
    base: Checkpoint, vector: Vector, tensors: Sequence[Tensor], layout: Layout
) -> tuple[tuple[Input, ...], tuple[Segment, ...]]:
    inputs = Inputs()
    inputs.add(base)
    first = inputs.add(vector.checkpoint)
    segments = []
    for tensor in tensors:
        part, place = vector.parts[tensor.name], layout.places[tensor.name]
        aligned = part_aligned(part)
        term = TermRange(values_of(part, first, 0), vector.name, 0, (1.0,), aligned)
        segments.append(
            Segment(
                operation="diff" if aligned else "delta",
                tensor=tensor.name,
                count=tensor.count,
                base=Range(tensor.shard, tensor.offset, tensor.dtype),
                terms=(term,),
                output=place.output,
                offset=place.offset,
                dtype=place.dtype,
            )
        )
    return inputs.files, tuple(segments)


def extract(
    plan: ExtractPlan, *, threads: int | None = None, progress: Progress | None = None
) -> ExtractReport:
    """Carry out ``plan``: bounded memory, staged, renamed into place at the end.

    Raises NonFiniteError, WriteError, OutputError, CheckpointError; then nothing was written.
    """
    start = time.perf_counter()
    with _staging(plan) as staging:
        (outcome,) = run(
            plan.plan,
            [StagingSink(staging, plan.plan.outputs)],
            threads=threads or env.workers(),
            progress=progress,
        )
        counts = outcome.counts
        if counts.nonfinite:
            found = nonfinite_tensors(plan.plan, counts)
            refuse_nonfinite(plan.plan, found, plan.target, "use --dtype f32")
        for name, data in plan.index:
            staging.add(name, data)
        if plan.directory:
            record = with_files(plan.metadata, plan.plan.outputs, outcome.digests, plan.index)
            staging.add(RECIPE_NAME, dump(record))
        staging.commit()
    notes = [*plan.notes, *staging.notes]
    if counts.unchanged == counts.elements:
        notes.append("every difference is 0: BASE and ALIGNED hold the same weights")
    return ExtractReport(
        plan.target,
        time.perf_counter() - start,
        plan.plan.bytes_read,
        plan.plan.bytes_written,
        len(plan.plan.segments),
        counts.elements,
        counts.unchanged,
        tuple(notes),
    )


def _staging(plan: ExtractPlan) -> Staging:
    inputs = [item.path for item in plan.plan.inputs]
    return Staging(plan.target, directory=plan.directory, force=plan.force, inputs=inputs)
