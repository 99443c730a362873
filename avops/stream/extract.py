"""extract: write AV = θ_aligned − θ_base as a delta file."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path

from avops import env
from avops.disk import (
    RECIPE_NAME,
    Staging,
    Vector,
    check_vector,
    fingerprint,
    open_base,
    touched,
)
from avops.disk.vector import BASE_KEY, BASE_NAME_KEY, KIND_KEY
from avops.dtypes import F32, DType
from avops.errors import MismatchError
from avops.stream.layout import index_file, is_directory, new_layout
from avops.stream.nonfinite import refuse_nonfinite
from avops.stream.pipeline import Progress, run
from avops.stream.plan import Plan, Range, Segment, TermRange
from avops.stream.record import dump, leftover_notes, listing, shown_path
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
    notes: tuple[str, ...] = ()


def plan_extract(
    base_path: str, aligned_path: str, out: Path, *, dtype: DType = F32, force: bool = False
) -> ExtractPlan:
    """Decide every byte of the extraction. Writes nothing.

    Raises CheckpointError, MismatchError or OutputError.
    """
    base, aligned = open_base(base_path), open_base(aligned_path)
    check_vector(base, Vector("ALIGNED", aligned, aligned=True))
    tensors = touched(base)
    if not tensors:
        raise MismatchError(
            f"{base_path}: holds no floating tensor, so there is no difference to extract; "
            "expected a checkpoint with BF16, F16 or F32 weights"
        )
    metadata = {
        KIND_KEY: "delta",
        "avops.version": __version__,
        BASE_NAME_KEY: shown_path(base_path),
        BASE_KEY: fingerprint(base),
        "avops.aligned": shown_path(aligned_path),
        "avops.aligned_fingerprint": fingerprint(aligned),
    }
    directory = is_directory(out)
    layout = new_layout(base, tensors, None if directory else out.name, dtype, metadata)
    segments = []
    for tensor in tensors:
        theirs, place = aligned.tensors[tensor.name], layout.places[tensor.name]
        values = Range(len(base.files) + theirs.shard, theirs.offset, theirs.dtype)
        segments.append(
            Segment(
                operation="diff",
                tensor=tensor.name,
                count=tensor.count,
                base=Range(tensor.shard, tensor.offset, tensor.dtype),
                terms=(TermRange(values, "ALIGNED", 1.0, aligned=True),),
                output=place.output,
                offset=place.offset,
                dtype=dtype,
            )
        )
    inputs = (*base.files, *aligned.files)
    small = index_file(layout)
    if directory:
        small = (*small, (RECIPE_NAME, dump(listing(metadata, layout.outputs, small))))
    plan = Plan(inputs, layout.outputs, tuple(segments), small)
    given = (Path(base_path), Path(aligned_path))
    extract_plan = ExtractPlan(out, directory, force, plan, dtype, given)
    staging = _staging(extract_plan)
    staging.check(plan.bytes_written)
    return dataclasses.replace(extract_plan, notes=leftover_notes(staging))


def extract(
    plan: ExtractPlan, *, threads: int | None = None, progress: Progress | None = None
) -> ExtractReport:
    """Carry out ``plan``: bounded memory, staged, renamed into place at the end.

    Raises NonFiniteError, WriteError, OutputError, CheckpointError; then nothing was written.
    """
    start = time.perf_counter()
    with _staging(plan) as staging:
        outcome = run(plan.plan, staging, threads=threads or env.threads(), progress=progress)
        if outcome.nonfinite:
            refuse_nonfinite(plan.plan, outcome.nonfinite, plan.target, "use --dtype f32")
        for name, data in plan.plan.small:
            staging.add(name, data)
        staging.commit()
    notes = [*plan.notes, *staging.notes]
    if outcome.unchanged == outcome.elements:
        notes.append("every difference is 0: BASE and ALIGNED hold the same weights")
    return ExtractReport(
        plan.target,
        time.perf_counter() - start,
        plan.plan.bytes_read,
        plan.plan.bytes_written,
        len(plan.plan.segments),
        outcome.elements,
        outcome.unchanged,
        tuple(notes),
    )


def _staging(plan: ExtractPlan) -> Staging:
    return Staging(plan.target, directory=plan.directory, force=plan.force, inputs=plan.plan.inputs)
