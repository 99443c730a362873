"""Deciding a merge: what its outputs are to the last byte, from recipes and headers."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from avops.disk import (
    RECIPE_NAME,
    Checkpoint,
    Vector,
    fingerprint,
    integer_notes,
    open_base,
    patch_config,
    plain_notes,
    sidecars,
    touched,
    vector_notes,
)
from avops.disk.strict_json import shown
from avops.dtypes import DType
from avops.errors import MismatchError, OutputError
from avops.kernels import registry
from avops.recipe import Recipe
from avops.stream.fit import open_vectors
from avops.stream.layout import index_file, is_directory, same_layout
from avops.stream.options import MergeOptions
from avops.stream.plan import Output, Plan
from avops.stream.record import model_card, recipe_record
from avops.stream.segments import merge_segments


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

    @cached_property
    def changed(self) -> tuple[str, ...]:
        """Names of the tensors that terms touch."""
        return tuple(dict.fromkeys(s.tensor for s in self.plan.segments if s.terms))

    @cached_property
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


def decide(wanted: Sequence[tuple[Recipe, Path]], options: MergeOptions) -> MergePlan:
    """The plan of ``plan_merges``, whether or not the outputs may be written."""
    recipes = [recipe for recipe, _ in wanted]
    _check_alike(recipes)
    registry.resolve("combine")
    base = open_base(recipes[0].base)
    if options.dtype is not None:
        touched(base)  # Converted, even where nothing is added.
    vectors = open_vectors(recipes, base, options)
    outs = [out for _, out in wanted]
    directory = is_directory(outs[0])
    if any(is_directory(out) != directory for out in outs):
        raise OutputError(
            f"{', '.join(map(str, outs))}: files and directories, expected one kind for all"
        )
    _check_apart(outs)
    layout = same_layout(base, None if directory else outs[0].name, options.dtype)
    seed = options.seed if options.rounding == "dither" else None
    inputs, segments = merge_segments(recipes, base, vectors, layout, seed)
    plan = Plan(inputs, layout.outputs, segments, len(recipes))
    prints, notes = _prints(recipes[0].base, base, vectors)
    for path, found in prints.items():
        recorded = options.fingerprints.get(path, found)
        if recorded != found:
            raise MismatchError(
                f"{path}: has the fingerprint {found[:12]}…, but the recipe was made with "
                f"{recorded[:12]}…: it is another model by now; give the one that was merged, or "
                "state the merge anew with BASE and --av"
            )
    if base.recorded_size not in (None, base.nbytes):
        recorded = shown(base.recorded_size)
        note = f"{base.path}: its index records a total_size of {recorded}, its tensors "
        notes += (f"{note}have {base.nbytes} bytes; the output's index is right",)
    shared: dict[str, bytes] = {}
    if directory:
        shared, more = _sidecars(base, options.dtype)
        notes += (*more, *plain_notes(base))
    targets: list[Target] = []
    for recipe, out in wanted:
        kinds = {term.source.path: vectors[term.source.path].kind for term in recipe.active}
        record = recipe_record(recipe, prints, options, kinds)
        small: tuple[tuple[str, bytes], ...] = ()
        if directory:
            card = {"README.md": model_card(record)}
            small = (*{**shared, **card}.items(), *index_file(layout))
        elif not targets:
            notes += _file_notes(base, out)
        targets.append(Target(recipe, out, record, small))
    keep = (base.path, *(vector.checkpoint.path for vector in vectors.values()))
    keep += tuple(Path(t.source.path) for t in recipes[0].terms if Path(t.source.path).exists())
    return MergePlan(tuple(targets), options, plan, keep, notes)


def _check_apart(outs: Sequence[Path]) -> None:
    """Refuse two outputs that are one file or directory by a link."""
    seen: dict[str, Path] = {}
    for out in outs:
        other = seen.setdefault(os.path.realpath(out), out)
        if other is not out:
            raise OutputError(f"{out}: the same place as {other}; expected outputs of their own")


def _check_alike(recipes: Sequence[Recipe]) -> None:
    def inputs(recipe: Recipe) -> tuple[object, ...]:
        return (recipe.base, tuple(term.source for term in recipe.terms))

    if not recipes or any(inputs(recipe) != inputs(recipes[0]) for recipe in recipes):
        raise ValueError("the recipes of one merge have one base and the same AVs in one order")


def _prints(
    base_path: str, base: Checkpoint, vectors: Mapping[str, Vector]
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Fingerprints by path, and notes on vectors that were made from another base."""
    prints = {path: fingerprint(vector) for path, vector in vectors.items()}
    prints[base_path] = fingerprint(base)
    here = prints[base_path]
    notes = tuple(
        f"AV {vector.name} was extracted from another base "
        f"({vector.metadata.get('avops.base', 'unnamed')}, fingerprint "
        f"{vector.base_fingerprint[:12]}…, here {here[:12]}…): a transfer"
        for vector in vectors.values()
        if vector.base_fingerprint not in (None, here)
    )
    for vector in vectors.values():
        notes += (*vector_notes(base, vector), *integer_notes(base, vector))
    return prints, notes


def _sidecars(base: Checkpoint, dtype: DType | None) -> tuple[dict[str, bytes], tuple[str, ...]]:
    """The sidecars of a directory output, and what to say about those left out."""
    files, skipped = sidecars(base.directory, known_only=base.is_file)
    notes = tuple(f"{name} was not copied: {why}" for name, why in skipped.items())
    if "config.json" not in files:
        notes += (f"{base.directory} has no config.json: the output has none, either",)
    elif dtype is not None:
        where = str(base.directory / "config.json")
        files["config.json"] = patch_config(files["config.json"], dtype, where)
    return files, notes


def _file_notes(base: Checkpoint, out: Path) -> tuple[str, ...]:
    if out.parent.resolve() == base.directory.resolve():
        return ()
    note = (
        f"config and tokenizer stay in {base.directory}; "
        f"for a complete model directory use -o {out.with_suffix('')}/"
    )
    return (note,)
