"""merge: write θ(λ) = θ_base + Σ λ_k · AV_k as a checkpoint."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avops import env
from avops.disk import (
    RECIPE_NAME,
    Checkpoint,
    Staging,
    Tensor,
    Vector,
    check_vector,
    fingerprint,
    open_base,
    open_vector,
    patch_config,
    sidecars,
    touched,
)
from avops.dtypes import DType
from avops.errors import RecipeError
from avops.kernels import registry
from avops.recipe import Recipe
from avops.stream.layout import Layout, Place, index_file, is_directory, same_layout
from avops.stream.nonfinite import refuse_nonfinite
from avops.stream.pipeline import Progress, run
from avops.stream.plan import Plan, Range, Segment, TermRange
from avops.stream.record import dump, leftover_notes, listing, model_card, recipe_record


@dataclass(frozen=True)
class MergeOptions:
    """dtype: of floating outputs (None: the base's). force: replace an earlier output.

    allow_missing, allow_extra: accept AVs that lack or add tensors. allow_nonfinite: accept NaN
    and infinities in the result.
    """

    dtype: DType | None = None
    force: bool = False
    allow_missing: bool = False
    allow_extra: bool = False
    allow_nonfinite: bool = False


@dataclass(frozen=True)
class MergePlan:
    """A merge decided to the last byte. notes: what the user should know before it runs."""

    recipe: Recipe
    options: MergeOptions
    target: Path
    directory: bool
    plan: Plan
    record: Mapping[str, Any]
    notes: tuple[str, ...]

    @property
    def changed(self) -> tuple[str, ...]:
        """Names of the tensors that terms touch."""
        return tuple(segment.tensor for segment in self.plan.segments if segment.terms)


@dataclass(frozen=True)
class MergeReport:
    """What a merge did. unchanged: elements of touched tensors equal to the base's."""

    target: Path
    seconds: float
    bytes_read: int
    bytes_written: int
    elements: int
    unchanged: int
    notes: tuple[str, ...]


def default_target(base: str) -> Path:
    """Where a merge of ``base`` goes by default: ``merged.safetensors`` or ``merged/``."""
    return Path("merged.safetensors") if Path(base).is_file() else Path("merged")


def plan_merge(
    recipe: Recipe, out: Path | None = None, options: MergeOptions | None = None
) -> MergePlan:
    """Decide every byte of the merge and check that it can be done. Writes nothing.

    out: a path ending in ``.safetensors`` gives one file, any other a directory.
    Raises RecipeError, CheckpointError, MismatchError, OutputError or BackendError.
    """
    options = options or MergeOptions()
    out = out or default_target(recipe.base)
    registry.resolve("combine")
    base = open_base(recipe.base)
    vectors: dict[str, Vector] = {}
    for term in recipe.active:
        vector = open_vector(term.name, term.source.path, term.source.kind)
        check_vector(
            base,
            vector,
            allow_missing=options.allow_missing,
            allow_extra=options.allow_extra,
        )
        _check_distinct(vector, vectors.values())
        vectors[term.source.path] = vector
    directory = is_directory(out)
    layout = same_layout(base, None if directory else out.name, options.dtype)
    inputs, segments = _segments(recipe, base, vectors, layout)
    record, notes = _record(recipe, base, vectors, options)
    if directory:
        small, more = _directory_files(base, layout, record, options.dtype)
        notes += more
    else:
        small = ((f"{out.stem}.{RECIPE_NAME}", dump(record)),)
        notes += _file_notes(base, out)
    plan = Plan(inputs, layout.outputs, segments, small)
    merge_plan = MergePlan(recipe, options, out, directory, plan, record, notes)
    staging = _staging(merge_plan)
    staging.check(plan.bytes_written)
    return dataclasses.replace(merge_plan, notes=notes + leftover_notes(staging))


def merge(
    plan: MergePlan, *, threads: int | None = None, progress: Progress | None = None
) -> MergeReport:
    """Carry out ``plan``: bounded memory, staged, renamed into place at the end.

    Raises NonFiniteError, WriteError, OutputError, CheckpointError; then nothing was written.
    """
    start = time.perf_counter()
    with _staging(plan) as staging:
        outcome = run(plan.plan, staging, threads=threads or env.threads(), progress=progress)
        if outcome.nonfinite and not plan.options.allow_nonfinite:
            advice = "lower λ, use a wider --dtype, or pass --allow-nonfinite"
            refuse_nonfinite(plan.plan, outcome.nonfinite, plan.target, advice)
        for name, data in plan.plan.small:
            staging.add(name, data)
        staging.commit()
    seconds = time.perf_counter() - start
    notes = (*plan.notes, *staging.notes)
    if outcome.nonfinite:
        count = sum(outcome.nonfinite.values())
        notes += (f"the result holds {count} values that are NaN or infinite, as allowed",)
    return MergeReport(
        plan.target,
        seconds,
        plan.plan.bytes_read,
        plan.plan.bytes_written,
        outcome.elements,
        outcome.unchanged,
        notes,
    )


def _check_distinct(vector: Vector, others: Iterable[Vector]) -> None:
    for other in others:
        if vector.checkpoint.path.samefile(other.checkpoint.path):
            raise RecipeError(
                f"--av {vector.name}: the same file or directory as {other.name}, expected each "
                "alignment vector once; add the coefficients up"
            )


def _staging(plan: MergePlan) -> Staging:
    return Staging(
        plan.target,
        directory=plan.directory,
        force=plan.options.force,
        inputs=(
            *plan.plan.inputs,
            Path(plan.recipe.base),
            *(Path(term.source.path) for term in plan.recipe.terms),
        ),
        companions=() if plan.directory else (name for name, _ in plan.plan.small),
    )


def _segments(
    recipe: Recipe, base: Checkpoint, vectors: Mapping[str, Vector], layout: Layout
) -> tuple[tuple[Path, ...], tuple[Segment, ...]]:
    inputs = list(base.files)
    first_file = {}
    for path, vector in vectors.items():
        first_file[path] = len(inputs)
        inputs.extend(vector.checkpoint.files)
    floating = {tensor.name for tensor in touched(base)}
    segments = []
    for tensor in base.tensors.values():
        terms = []
        for term in recipe.active if tensor.name in floating else ():
            vector = vectors[term.source.path]
            theirs = vector.checkpoint.tensors.get(tensor.name)
            if theirs is not None:
                file = first_file[term.source.path] + theirs.shard
                values = Range(file, theirs.offset, theirs.dtype)
                terms.append(TermRange(values, term.name, term.lam, vector.aligned))
        segments.append(_segment(tensor, tuple(terms), layout.places[tensor.name]))
    return tuple(inputs), tuple(segments)


def _segment(tensor: Tensor, terms: tuple[TermRange, ...], place: Place) -> Segment:
    plain = not terms and place.dtype == tensor.dtype
    return Segment(
        operation="copy" if plain else "combine",
        tensor=tensor.name,
        count=tensor.nbytes if plain else tensor.count,
        base=Range(tensor.shard, tensor.offset, tensor.dtype),
        terms=terms,
        output=place.output,
        offset=place.offset,
        dtype=place.dtype,
    )


def _record(
    recipe: Recipe, base: Checkpoint, vectors: Mapping[str, Vector], options: MergeOptions
) -> tuple[dict[str, Any], tuple[str, ...]]:
    prints = {path: fingerprint(vector.checkpoint) for path, vector in vectors.items()}
    prints[recipe.base] = fingerprint(base)
    kinds = {path: "aligned" if v.aligned else "delta" for path, v in vectors.items()}
    tag = options.dtype.tag if options.dtype else None
    notes = []
    for vector in vectors.values():
        recorded = vector.base_fingerprint
        if recorded is not None and recorded != prints[recipe.base]:
            notes.append(
                f"AV {vector.name} was extracted from another base "
                f"({vector.metadata.get('avops.base', 'unnamed')}, fingerprint {recorded[:12]}…, "
                f"here {prints[recipe.base][:12]}…): a transfer"
            )
    return recipe_record(recipe, prints, tag, kinds), tuple(notes)


def _directory_files(
    base: Checkpoint, layout: Layout, record: Mapping[str, Any], dtype: DType | None
) -> tuple[tuple[tuple[str, bytes], ...], tuple[str, ...]]:
    """The small files of a directory output, and what to say about those left out."""
    files, skipped = sidecars(base.directory, known_only=base.is_file)
    notes = tuple(f"{name} was not copied: {why}" for name, why in skipped.items())
    if "config.json" not in files:
        notes += (f"{base.directory} has no config.json: the output has none, either",)
    elif dtype is not None:
        where = str(base.directory / "config.json")
        files["config.json"] = patch_config(files["config.json"], dtype, where)
    files["README.md"] = model_card(record)
    small = (*files.items(), *index_file(layout))
    return (*small, (RECIPE_NAME, dump(listing(record, layout.outputs, small)))), notes


def _file_notes(base: Checkpoint, out: Path) -> tuple[str, ...]:
    if out.parent.resolve() == base.directory.resolve():
        return ()
    note = (
        f"config and tokenizer stay in {base.directory}; "
        f"for a complete model directory use -o {out.with_suffix('')}/"
    )
    return (note,)
