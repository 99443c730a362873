"""avops merge: write θ(λ) as a checkpoint."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avops.cli import output, project
from avops.cli.options import add_dtype, dtype_of

if TYPE_CHECKING:
    from avops.stream import MergePlan, MergeReport


def add(verbs: Any) -> None:
    """Register the verb."""
    parser = verbs.add_parser(
        "merge",
        help="write base + Σ λ·AV as a checkpoint",
        description="Write θ(λ) = θ_base + Σ λ · AV as a checkpoint, streamed and bit-exact.",
    )
    parser.add_argument("base", nargs="?", metavar="BASE", help="checkpoint: file or directory")
    project.add_av(
        parser, "alignment vectors with λ: a name in avops.toml, or a path", required=True
    )
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        metavar="OUT",
        help="file.safetensors or a directory (default: merged.safetensors or merged/)",
    )
    add_dtype(parser, "dtype of floating tensors in the output (default: the base's)")
    parser.add_argument("--force", action="store_true", help="replace an earlier output")
    parser.add_argument("--dry-run", action="store_true", help="check and show the plan only")
    parser.add_argument("--json", action="store_true", help="one JSON result on stdout")
    parser.add_argument("--allow-missing", action="store_true", help="AVs may lack tensors")
    parser.add_argument("--allow-extra", action="store_true", help="AVs may have more tensors")
    parser.add_argument("--allow-nonfinite", action="store_true", help="keep NaN and infinities")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Carry out the verb."""
    from avops.recipe import Recipe, parse_terms
    from avops.stream import MergeOptions, merge, plan_merge

    found = project.load_project()
    terms = parse_terms(project.terms_of(args.av), project.sources(found))
    recipe = Recipe(project.base_of(args.base, found), terms)
    options = MergeOptions(
        dtype=dtype_of(args),
        force=args.force,
        allow_missing=args.allow_missing,
        allow_extra=args.allow_extra,
        allow_nonfinite=args.allow_nonfinite,
    )
    plan = plan_merge(recipe, args.out, options)
    if args.dry_run:
        _show_plan(plan, as_json=args.json)
        return 0
    with output.progress("merging", quiet=args.json) as progress:
        report = merge(plan, progress=progress)
    _show_report(plan, report, as_json=args.json)
    return 0


def _show_plan(plan: MergePlan, *, as_json: bool) -> None:
    facts = _facts(plan)
    if as_json:
        output.result({**facts, "dry_run": True, "notes": plan.notes})
        return
    output.line(f"would merge {plan.recipe.base} + {plan.recipe} into {plan.target}")
    for name, value in (
        ("tensors", f"{facts['tensors_changed']} changed, {facts['tensors_copied']} copied"),
        ("reads", output.size(plan.plan.bytes_read)),
        ("writes", f"{output.size(plan.plan.bytes_written)} in {len(facts['files'])} files"),
        ("files", ", ".join(facts["files"])),
    ):
        output.line(f"  {name:8} {value}")
    for text in plan.notes:
        output.note(text)


def _facts(plan: MergePlan) -> dict[str, Any]:
    files = [*(out.name for out in plan.plan.outputs), *(name for name, _ in plan.plan.small)]
    return {
        "out": str(plan.target),
        "recipe": plan.record,
        "tensors_changed": len(plan.changed),
        "tensors_copied": len(plan.plan.segments) - len(plan.changed),
        "bytes_read": plan.plan.bytes_read,
        "bytes_written": plan.plan.bytes_written,
        "files": files,
    }


def _show_report(plan: MergePlan, report: MergeReport, *, as_json: bool) -> None:
    share = report.unchanged / report.elements if report.elements else 1.0
    if as_json:
        output.result(
            {
                **_facts(plan),
                "seconds": round(report.seconds, 6),
                "unchanged_share": share,
                "notes": report.notes,
            }
        )
        return
    moved = report.bytes_read + report.bytes_written
    output.line(
        f"{report.target}  {plan.recipe.base} + {plan.recipe}  "
        f"{output.size(report.bytes_written)} in {output.seconds(report.seconds)} "
        f"({output.size(int(moved / report.seconds))}/s read + written)"
    )
    if len(plan.changed):
        output.line(
            f"  {len(plan.changed)} of {len(plan.plan.segments)} tensors changed; "
            f"in them {share:.1%} of elements are as in the base"
        )
    for text in report.notes:
        output.note(text)
