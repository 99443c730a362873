"""avops inspect: tensors of a checkpoint; norms, zeros and cosines of alignment vectors."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from avops.cli import hub, output, project
from avops.errors import UserError
from avops.recipe import Project, Source
from avops.score.wording import counted

if TYPE_CHECKING:
    from avops.disk import AdapterConfig, Checkpoint, Vector
    from avops.stream import Group, VectorReport


def add(verbs: Any) -> None:
    """Register the verb."""
    parser = verbs.add_parser(
        "inspect",
        help="what is in a checkpoint or an alignment vector",
        description="Show tensors, dtypes and sizes of checkpoints, and what LoRA adapters "
        "change; for alignment vectors also norm per tensor group, share of zeros and pairwise "
        "cosines.",
    )
    parser.add_argument(
        "paths",
        nargs="*",
        metavar="PATH",
        help="checkpoints, AVs (paths, hub ids), or AV names in avops.toml (default: all of these)",
    )
    parser.add_argument(
        "--base", metavar="BASE", help="take aligned checkpoints as AVs of this base"
    )
    parser.add_argument("--json", action="store_true", help="one JSON result on stdout")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Carry out the verb."""
    from avops.disk import open_checkpoint, open_vector
    from avops.stream import inspect_checkpoint, inspect_vectors

    found = project.load_project()
    names = args.paths or list(found.avs)
    if not names:
        raise UserError(
            "no PATH given and no [av] table in avops.toml here; expected a checkpoint or an AV"
        )
    sources = [_source(name, found) for name in names]
    opened = [
        open_vector(source.name, hub.local(source.path, quiet=args.json), source.kind)
        for source in sources
    ]
    named = [source.name in found.avs for source in sources]
    base_path = args.base or (found.base if any(named) else None)
    base = open_checkpoint(hub.local(base_path, quiet=args.json)) if base_path else None
    vectors = [
        vector
        for vector, is_named in zip(opened, named, strict=True)
        if not vector.needs_base or is_named or args.base
    ]
    groups = {vector.name: inspect_checkpoint(vector.checkpoint) for vector in opened}
    needs_base = any(vector.needs_base for vector in vectors) or args.base
    report = None
    if vectors:
        with output.progress("measuring", unit="elements", quiet=args.json) as progress:
            report = inspect_vectors(vectors, base if needs_base else None, progress)
    if args.json:
        output.result(_json(opened, groups, report))
        return 0
    for number, vector in enumerate(opened):
        if number and not (vector in vectors and vector.adapter is None):
            output.line()  # before a table of its own
        if text := vector.metadata.get("avops.transforms"):
            output.line(output.plain(f"{vector.checkpoint.path}: transformed: {text}"))
        if vector.adapter is not None:
            _show_adapter(vector, vector.adapter)
            continue
        # Vectors get one table of norms together, below.
        _show_checkpoint(vector.checkpoint, groups[vector.name], brief=vector in vectors)
    if report is not None:
        _show_vectors(report)
    return 0


def _source(name: str, found: Project) -> Source:
    """An AV of avops.toml, or else a path: opening it says what is wrong with it."""
    return found.avs.get(name) or Source(name, name)


def _show_checkpoint(checkpoint: Checkpoint, groups: dict[str, Group], *, brief: bool) -> None:
    elements = sum(group.elements for group in groups.values())
    dtypes = ",".join(sorted(set().union(*(group.dtypes for group in groups.values()))))
    title = (
        f"{checkpoint.path}: {counted(len(checkpoint.tensors), 'tensor')}, "
        f"{counted(elements, 'element')}, {dtypes}, "
        f"{output.size(checkpoint.nbytes)} in {counted(len(checkpoint.shards), 'file')}"
    )
    if brief:
        output.line(output.plain(title))
        return
    rows = [
        [
            group.name,
            str(group.tensors),
            ",".join(sorted(group.dtypes)),
            _shapes(group.shapes),
            f"{group.elements:,}",
            output.size(group.nbytes),
        ]
        for group in groups.values()
    ]
    columns = ("tensors", "n", "dtype", "shape", "elements", "size")
    output.table(title, columns, rows)


def _shapes(shapes: set[tuple[int, ...]]) -> str:
    shown = " ".join("×".join(map(str, shape)) or "scalar" for shape in sorted(shapes)[:2])
    return shown + (" …" if len(shapes) > 2 else "")


def _show_adapter(vector: Vector, config: AdapterConfig) -> None:
    """The settings, and the base tensors that the adapter changes."""
    from avops.stream import inspect_adapter

    groups = inspect_adapter(vector)
    whole = sum(group.whole for group in groups.values())
    scale = "alpha/√rank" if config.rslora else "alpha/rank"
    title = (
        f"{vector.checkpoint.path}: LoRA adapter, rank {config.rank}, alpha {config.alpha:g}, "
        f"scale {scale}; changes {counted(len(vector.parts), 'tensor')} of the base, "
        f"{len(vector.parts) - whole} by low-rank products, {whole} whole; "
        f"{output.size(vector.checkpoint.nbytes)} in "
        f"{counted(len(vector.checkpoint.shards), 'file')}"
    )
    rows = [
        [
            group.name,
            str(group.tensors),
            ",".join(map(str, sorted(group.ranks))) or "whole",
            " ".join(f"{scale:.4g}" for scale in sorted(group.scales)) or "-",
            _shapes(group.shapes),
        ]
        for group in groups.values()
    ]
    output.table(title, ("tensors", "n", "rank", "scale", "shape"), rows)
    output.line(output.plain(f"modules: {' '.join(_grouped(config.modules)) or 'not recorded'}"))
    output.line(output.plain(f"trained on: {config.base or 'not recorded'}"))


def _grouped(modules: Sequence[str]) -> list[str]:
    """``modules`` with * for numbers, each once: PEFT may list those of every layer."""
    return list(dict.fromkeys(re.sub(r"(^|\.)\d+(?=\.|$)", r"\1*", module) for module in modules))


def _show_vectors(report: VectorReport) -> None:
    names = list(dict.fromkeys(name for groups in report.groups for name in groups))
    rows = []
    for name in names:
        sizes = [groups.get(name) for groups in report.groups]
        rows.append([name, *("-" if size is None else f"{size.norm:.4g}" for size in sizes)])
    rows.append(["all", *(f"{total.norm:.4g}" for total in report.totals)])
    zeros = [total.zeros / total.elements if total.elements else 0.0 for total in report.totals]
    rows.append(["share of zeros", *(f"{share:.1%}" for share in zeros)])
    output.line()
    output.table("norm of the alignment vectors", ("tensors", *report.names), rows)
    if len(report.names) > 1:
        output.line()
        cosines = [
            [name, *("-" if math.isnan(value) else f"{value:.3f}" for value in row)]
            for name, row in zip(report.names, report.cosines, strict=True)
        ]
        output.table("cosine", ("", *report.names), cosines)


def _json(
    opened: list[Vector], groups: dict[str, dict[str, Group]], report: VectorReport | None
) -> dict[str, Any]:
    data: dict[str, Any] = {"checkpoints": [], "vectors": None}
    for vector in opened:
        checkpoint = vector.checkpoint
        data["checkpoints"].append(
            {
                "path": str(checkpoint.path),
                "kind": "checkpoint" if vector.aligned else vector.kind,
                "files": len(checkpoint.shards),
                "bytes": checkpoint.nbytes,
                "metadata": dict(vector.metadata),
                "groups": [
                    {
                        "name": group.name,
                        "tensors": group.tensors,
                        "elements": group.elements,
                        "bytes": group.nbytes,
                        "dtypes": sorted(group.dtypes),
                        "shapes": [list(shape) for shape in sorted(group.shapes)],
                    }
                    for group in groups[vector.name].values()
                ],
                "adapter": _adapter_json(vector),
            }
        )
    if report is not None:
        data["vectors"] = [
            {
                "name": name,
                "norm": _finite(total.norm),
                "zero_share": total.zeros / total.elements if total.elements else 0.0,
                "groups": {group: _finite(size.norm) for group, size in sizes.items()},
                "cosines": {
                    other: _finite(value)
                    for other, value in zip(report.names, cosines, strict=True)
                },
            }
            for name, total, sizes, cosines in zip(
                report.names, report.totals, report.groups, report.cosines, strict=True
            )
        ]
    return data


def _adapter_json(vector: Vector) -> dict[str, Any] | None:
    from avops.stream import inspect_adapter

    config = vector.adapter
    if config is None:
        return None
    return {
        "rank": config.rank,
        "alpha": config.alpha,
        "rslora": config.rslora,
        "modules": list(config.modules),
        "base": config.base,
        "touches": [
            {
                "name": group.name,
                "tensors": group.tensors,
                "whole": group.whole,
                "ranks": sorted(group.ranks),
                "scales": sorted(group.scales),
                "shapes": [list(shape) for shape in sorted(group.shapes)],
            }
            for group in inspect_adapter(vector).values()
        ],
    }


def _finite(value: float) -> float | None:
    """JSON has no NaN and no infinity: None stands for both."""
    return value if math.isfinite(value) else None
