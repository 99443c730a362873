"""What `avops merge` shows: its plan, and what it wrote."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from avops.cli import output

if TYPE_CHECKING:
    from avops.stream import MergePlan, MergeReport, Written


def show_plan(plan: MergePlan, *, as_json: bool) -> None:
    """What would be read and written, how long it may take, and every λ in use."""
    from avops import env
    from avops.stream.estimate import estimate

    facts = _facts(plan)
    guess = estimate(plan.plan, env.workers())
    if as_json:
        output.result(
            {
                **facts,
                "dry_run": True,
                "memory_bytes": guess.memory,
                "expected_seconds": round(guess.seconds, 3),
                "cached_share": round(guess.cached, 4),
                "lams": _lams(plan),
                "notes": plan.notes,
            }
        )
        return
    for target in plan.targets:
        output.line(f"would merge {target.recipe.base} + {target.recipe} into {target.path}")
    read = "all of it cached" if guess.cached >= 1 else f"{guess.cached:.0%} of it cached"
    read += f", the disk reads {output.size(int(guess.read))}/s" if guess.read else ""
    for name, value in (
        ("tensors", f"{facts['tensors_changed']} changed, {facts['tensors_copied']} copied"),
        ("reads", f"{output.size(plan.plan.bytes_read)}, {read}"),
        (
            "writes",
            f"{output.size(plan.bytes_written)} in {len(facts['files'])} files"
            + (f" each, {len(plan.targets)} outputs" if len(plan.targets) > 1 else ""),
        ),
        ("memory", f"about {output.size(guess.memory)}"),
        ("time", f"{_about(guess.seconds)}, if writing is as fast as reading"),
        ("files", ", ".join(facts["files"])),
    ):
        output.line(f"  {name:8} {value}")
    _show_lams(plan)
    for text in plan.notes:
        output.note(text)


def _about(seconds: float) -> str:
    """An expected time, not more exact than it is."""
    return "under a second" if seconds < 1 else f"about {output.seconds(float(f'{seconds:.2g}'))}"


def _lams(plan: MergePlan) -> dict[str, dict[str, list[float]]]:
    """λ per tensor and AV, one for each candidate; tensors that nothing touches are left out."""
    return {
        segment.tensor: {term.name: list(term.lams) for term in segment.terms}
        for segment in plan.plan.segments
        if segment.terms and segment.first == 0
    }


def _show_lams(plan: MergePlan) -> None:
    """λ per group of tensors with the same λ, when rules make them differ."""
    if not any(term.rules for term in plan.recipe.terms):
        return
    groups: dict[tuple[float, ...], list[str]] = {}
    names = [term.name for term in plan.recipe.terms]
    for tensor, lams in _lams(plan).items():
        key = tuple(lams.get(name, [0.0])[0] for name in names)
        groups.setdefault(key, []).append(tensor)
    if plan.copied:
        groups.setdefault((0.0,) * len(names), []).extend(plan.copied)
    rows = [
        [*(f"{lam:g}" for lam in lams), str(len(tensors)), tensors[0]]
        for lams, tensors in groups.items()
    ]
    output.table("λ per tensor", (*names, "tensors", "the first of them"), rows, left=0)


def _facts(plan: MergePlan) -> dict[str, Any]:
    return {
        "out": str(plan.target),
        "outs": [str(target.path) for target in plan.targets],
        "recipe": plan.record,
        "tensors_changed": len(plan.changed),
        "tensors_copied": len(plan.copied),
        "bytes_read": plan.plan.bytes_read,
        "bytes_written": plan.bytes_written,
        "files": list(plan.files),
    }


def show_report(plan: MergePlan, report: MergeReport, *, as_json: bool) -> None:
    """What was written, and what of it arrived."""
    if as_json:
        output.result(
            {
                **_facts(plan),
                "recipe": report.outputs[0].record,
                "bytes_written": report.bytes_written,
                "seconds": round(report.seconds, 6),
                "unchanged_share": _unchanged(report.outputs[0]),
                "outputs": [
                    {
                        "out": str(written.target),
                        "lams": {term.name: term.text for term in written.recipe.terms},
                        **written.measured,
                    }
                    for written in report.outputs
                ],
                "notes": report.notes,
            }
        )
        return
    moved = report.bytes_read + report.bytes_written
    rate = output.size(int(moved / report.seconds))
    many = len(report.outputs) > 1
    for written in report.outputs:
        size = output.size(written.nbytes)
        took = "" if many else f" in {output.seconds(report.seconds)} ({rate}/s read + written)"
        output.line(f"{written.target}  {plan.recipe.base} + {written.recipe}  {size}{took}")
        if plan.changed:
            _show_effect(plan, written)
    if many:
        output.line(
            f"{len(report.outputs)} outputs in {output.seconds(report.seconds)} "
            f"({rate}/s read + written)"
        )
    for text in report.notes:
        output.note(text)


def _show_effect(plan: MergePlan, written: Written) -> None:
    total = len(plan.changed) + len(plan.copied)
    output.line(
        f"  {len(plan.changed)} of {total} tensors changed; "
        f"in them {_unchanged(written):.1%} of elements are as in the base"
    )
    effective = [
        f"{term.name} {lam:g}"
        for term, lam in zip(written.recipe.terms, written.measured["effective_lam"], strict=True)
        if lam is not None
    ]
    if effective:
        output.line(f"  effective λ after rounding: {', '.join(effective)}")
    events = [
        f"{written.measured[name]:,} elements {what}"
        for name, what in (("overflowed", "overflowed to infinity"), ("flushed", "became 0"))
        if written.measured[name]
    ]
    if events:
        output.line(f"  {' and '.join(events)} in {plan.options.dtype or 'the output dtype'}")


def _unchanged(written: Written) -> float:
    elements = written.measured["elements"]
    return written.measured["unchanged"] / elements if elements else 1.0
