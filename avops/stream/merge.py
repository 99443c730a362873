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
from avops.disk import Staging
from avops.recipe import Recipe
from avops.stream.decide import MergePlan, Target, decide
from avops.stream.nonfinite import refuse_nonfinite
from avops.stream.options import MergeOptions
from avops.stream.pipeline import Outcome, Progress, nonfinite_tensors, run
from avops.stream.record import dump, leftover_notes, measured, with_files
from avops.stream.sink import StagingSink


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
