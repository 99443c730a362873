"""merge: write θ(λ) = θ_base + Σ λ_k · AV_k as a checkpoint, or several λ points in one read."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avops import env
from avops.disk import (
    RECIPE_NAME,
    Checkpoint,
    Staging,
    Vector,
    fingerprint,
    open_base,
    patch_config,
    sidecars,
)
from avops.dtypes import DType
from avops.errors import OutputError
from avops.kernels import registry
from avops.recipe import Recipe
from avops.stream.fit import open_vectors
from avops.stream.layout import Layout, index_file, is_directory, same_layout
from avops.stream.nonfinite import refuse_nonfinite
from avops.stream.options import MergeOptions
from avops.stream.pipeline import Outcome, Progress, nonfinite_tensors, run
from avops.stream.plan import Output, Plan
from avops.stream.record import (
    dump,
    leftover_notes,
    measured,
    model_card,
    recipe_record,
    with_files,
)
from avops.stream.segments import merge_segments
from avops.stream.sink import StagingSink


@dataclass(frozen=True)
class Target:
    """One output of a merge: its recipe, path, record, and the small files beside the weights.

    small: without the recipe file, which is written when digests are known.
    """

    recipe: Recipe
    path: Path
    record: Mapping[str, Any]
    small: tuple[tuple[str, bytes], ...]

    @property
    def recipe_name(self) -> str:
        """The recipe file's name."""
        return f"{self.path.stem}.{RECIPE_NAME}" if not self.directory else RECIPE_NAME

    @property
    def directory(self) -> bool:
        """Whether the output is a directory."""
        return is_directory(self.path)

    def outputs(self, plan: Plan) -> tuple[Output, ...]:
        """The files of weights under their names in this output."""
        if self.directory:
            return plan.outputs
        return tuple(dataclasses.replace(output, name=self.path.name) for output in plan.outputs)


@dataclass(frozen=True)
class MergePlan:
    """A merge decided to the last byte. notes: what the user should know before it runs.

    keep: files and directories that no output may replace.
    """

    targets: tuple[Target, ...]
    options: MergeOptions
    plan: Plan
    keep: tuple[Path, ...]
    notes: tuple[str, ...]

    @property
    def target(self) -> Path:
        """The first output's path."""
        return self.targets[0].path

    @property
    def recipe(self) -> Recipe:
        """The first output's recipe."""
        return self.targets[0].recipe

    @property
    def record(self) -> Mapping[str, Any]:
        """The first output's record."""
        return self.targets[0].record

    @property
    def changed(self) -> tuple[str, ...]:
        """Names of the tensors that terms touch."""
        return tuple(dict.fromkeys(s.tensor for s in self.plan.segments if s.terms))

    @property
    def copied(self) -> tuple[str, ...]:
        """Names of the tensors that no term touches."""
        changed = set(self.changed)
        names = dict.fromkeys(s.tensor for s in self.plan.segments)
        return tuple(name for name in names if name not in changed)

    @property
    def files(self) -> tuple[str, ...]:
        """Names of an output's files."""
        first = self.targets[0]
        weights = (output.name for output in self.plan.outputs)
        return (*weights, *(name for name, _ in first.small), first.recipe_name)

    @property
    def bytes_written(self) -> int:
        """Bytes of all outputs, but for their recipe files."""
        small = sum(len(data) for target in self.targets for _, data in target.small)
        return self.plan.bytes_written + small


@dataclass(frozen=True)
class Written:
    """One output as it was written. record: its recipe file. nbytes: of all its files."""

    target: Path
    recipe: Recipe
    record: Mapping[str, Any]
    nbytes: int

    @property
    def measured(self) -> Mapping[str, Any]:
        """What the merge saw; see ``record.measured``."""
        found: Mapping[str, Any] = self.record["measured"]
        return found


@dataclass(frozen=True)
class MergeReport:
    """What a merge did. unchanged: elements of touched tensors equal to the base's."""

    outputs: tuple[Written, ...]
    seconds: float
    bytes_read: int
    notes: tuple[str, ...]

    @property
    def bytes_written(self) -> int:
        """Bytes of all outputs."""
        return sum(written.nbytes for written in self.outputs)

    @property
    def target(self) -> Path:
        """The first output's path."""
        return self.outputs[0].target

    @property
    def elements(self) -> int:
        """Elements of touched tensors of the first output."""
        return int(self.outputs[0].measured["elements"])

    @property
    def unchanged(self) -> int:
        """Those of them that equal the base's."""
        return int(self.outputs[0].measured["unchanged"])


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
    return plan_merges([(recipe, out or default_target(recipe.base))], options)


def plan_merges(
    wanted: Sequence[tuple[Recipe, Path]], options: MergeOptions | None = None
) -> MergePlan:
    """As ``plan_merge`` for several recipes, whose inputs are read once for all of them.

    The recipes have the same base and the same alignment vectors in the same order; λ differs.
    The outputs are all directories, or all files.
    """
    plan = decide(wanted, options or MergeOptions())
    outs = [target.path for target in plan.targets]
    for target in plan.targets:
        staging = _staging(plan, target)
        staging.check(plan.bytes_written if len({out.parent for out in outs}) == 1 else 0)
        if not plan.options.resume:
            more = leftover_notes(staging, resumable=True)
            plan = dataclasses.replace(plan, notes=plan.notes + more)
    return plan


def decide(wanted: Sequence[tuple[Recipe, Path]], options: MergeOptions) -> MergePlan:
    """The plan of ``plan_merges``, whether or not the outputs may be written."""
    recipes = [recipe for recipe, _ in wanted]
    _check_alike(recipes)
    registry.resolve("combine")
    base = open_base(recipes[0].base)
    vectors = open_vectors(recipes, base, options)
    outs = [out for _, out in wanted]
    directory = is_directory(outs[0])
    if any(is_directory(out) != directory for out in outs):
        raise OutputError(
            f"{', '.join(map(str, outs))}: files and directories, expected one kind for all"
        )
    layout = same_layout(base, None if directory else outs[0].name, options.dtype)
    seed = options.seed if options.rounding == "dither" else None
    inputs, segments = merge_segments(recipes, base, vectors, layout, seed)
    plan = Plan(inputs, layout.outputs, segments, len(recipes))
    prints, notes = _prints(recipes[0].base, base, vectors)
    targets = []
    for recipe, out in wanted:
        kinds = {term.source.path: vectors[term.source.path].kind for term in recipe.active}
        record = recipe_record(recipe, prints, options, kinds)
        small: tuple[tuple[str, bytes], ...] = ()
        if directory:
            small, more = _directory_files(base, layout, record, options.dtype)
        else:
            more = _file_notes(base, out)
        notes += tuple(note for note in more if note not in notes)
        targets.append(Target(recipe, out, record, small))
    keep = (base.path, *(vector.checkpoint.path for vector in vectors.values()))
    keep += tuple(Path(t.source.path) for t in recipes[0].terms if Path(t.source.path).exists())
    return MergePlan(tuple(targets), options, plan, keep, notes)


def merge(
    plan: MergePlan, *, threads: int | None = None, progress: Progress | None = None
) -> MergeReport:
    """Carry out ``plan``: bounded memory, staged, renamed into place at the end.

    Raises NonFiniteError, WriteError, OutputError, CheckpointError; then nothing was written.
    """
    start = time.perf_counter()
    notes = list(plan.notes)
    with contextlib.ExitStack() as stack:
        stagings = [stack.enter_context(_staging(plan, target)) for target in plan.targets]
        taken = sum(len(staging.resumed) for staging in stagings)
        if taken:
            notes.append(f"resumed: {taken} blocks of a killed run were there")
        elif plan.options.resume:
            notes.append("nothing to resume: no killed run of this very merge was found")
        outcomes = run(
            plan.plan,
            [
                StagingSink(staging, target.outputs(plan.plan))
                for target, staging in zip(plan.targets, stagings, strict=True)
            ],
            threads=threads or env.workers(),
            progress=progress,
        )
        written = []
        for target, staging, outcome in zip(plan.targets, stagings, outcomes, strict=True):
            written.append(_finish(plan, target, staging, outcome, notes))
        for staging in stagings:
            staging.commit()
            notes += staging.notes
    return MergeReport(
        tuple(written),
        time.perf_counter() - start,
        plan.plan.bytes_read,
        tuple(notes),
    )


def _finish(
    plan: MergePlan, target: Target, staging: Staging, outcome: Outcome, notes: list[str]
) -> Written:
    """Refuse or remark on what came out, and stage the small files."""
    found = nonfinite_tensors(plan.plan, outcome.counts)
    if found and not plan.options.allow_nonfinite:
        advice = "lower λ, use a wider --dtype, or pass --allow-nonfinite"
        refuse_nonfinite(plan.plan, found, target.path, advice)
    if found:
        count = sum(found.values())
        notes.append(f"{target.path} holds {count} values that are NaN or infinite, as allowed")
    for name, data in target.small:
        staging.add(name, data)
    outputs = target.outputs(plan.plan)
    record = {**target.record, "measured": measured(target.recipe, outcome)}
    record = with_files(record, outputs, outcome.digests, target.small)
    text = dump(record)
    staging.add(target.recipe_name, text)
    nbytes = sum(entry["bytes"] for entry in record["files"].values()) + len(text)
    return Written(target.path, target.recipe, record, nbytes)


def _check_alike(recipes: Sequence[Recipe]) -> None:
    def inputs(recipe: Recipe) -> tuple[object, ...]:
        return (recipe.base, tuple(term.source for term in recipe.terms))

    if not recipes or any(inputs(recipe) != inputs(recipes[0]) for recipe in recipes):
        raise ValueError("the recipes of one merge have one base and the same AVs in one order")


def _staging(plan: MergePlan, target: Target) -> Staging:
    return Staging(
        target.path,
        directory=target.directory,
        force=plan.options.force,
        inputs=(*(item.path for item in plan.plan.inputs), *plan.keep),
        companions=() if target.directory else (target.recipe_name,),
        plan_id=_plan_id(plan, target),
        resume=plan.options.resume,
    )


def _plan_id(plan: MergePlan, target: Target) -> str:
    """Which bytes the target will hold: equal for two runs that write the same."""
    facts = {
        "record": target.record,
        "outputs": [
            (output.name, output.size, hashlib.sha256(output.prefix).hexdigest())
            for output in plan.plan.outputs
        ],
        "inputs": [dataclasses.astuple(item.identity) for item in plan.plan.inputs],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _prints(
    base_path: str, base: Checkpoint, vectors: Mapping[str, Vector]
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Fingerprints by path, and notes on vectors that were made from another base."""
    prints = {path: fingerprint(vector.checkpoint) for path, vector in vectors.items()}
    prints[base_path] = fingerprint(base)
    here = prints[base_path]
    notes = tuple(
        f"AV {vector.name} was extracted from another base "
        f"({vector.metadata.get('avops.base', 'unnamed')}, fingerprint "
        f"{vector.base_fingerprint[:12]}…, here {here[:12]}…): a transfer"
        for vector in vectors.values()
        if vector.base_fingerprint not in (None, here)
    )
    return prints, notes


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
    return (*files.items(), *index_file(layout)), notes


def _file_notes(base: Checkpoint, out: Path) -> tuple[str, ...]:
    if out.parent.resolve() == base.directory.resolve():
        return ()
    note = (
        f"config and tokenizer stay in {base.directory}; "
        f"for a complete model directory use -o {out.with_suffix('')}/"
    )
    return (note,)
