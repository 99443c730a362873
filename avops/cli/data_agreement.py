"""avops data agreement: annotators against the levels, and against each other."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avops.cli import output

if TYPE_CHECKING:
    from avops.align.data import Agreement
    from avops.align.data.kappa import Interval
    from avops.align.data.raters import Rater


def add(tasks: Any) -> argparse.ArgumentParser:
    """Register the task."""
    parser: argparse.ArgumentParser = tasks.add_parser(
        "agreement",
        help="accuracy, confusion matrix and Cohen's kappa of annotations",
        description="Read annotations (.csv with a header, or JSON lines) with the fields item, "
        "annotator, label and level, the true one; domain is optional. Say how often annotators "
        "meet the level, what they take for what, and how far they agree beyond chance: Cohen's "
        "kappa with the true level and between each two, Fleiss' kappa of three or more. "
        "Intervals are 95 %: Wilson's for the accuracy of one annotator, the bootstrap's over "
        "items for all else.",
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="annotations: .csv or .jsonl")
    parser.add_argument("--json", action="store_true", help="one JSON result on stdout")
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Carry out the task."""
    from avops.align.data import agreement, load_annotations

    found = load_annotations(args.file)
    if found.ignored:
        output.note(f"{args.file}: fields that are not read: {', '.join(found.ignored)}")
    measured = agreement(found)
    if args.json:
        output.result(measured.to_dict())
    else:
        _show(measured)
    return 0


def _show(measured: Agreement) -> None:
    by_domain = any(rater.domain for rater in measured.raters)
    head = ["annotator", "labels", "accuracy", "95 %", "κ with level", "95 % "]
    rows = []
    for rater in measured.raters:
        domain = [rater.domain or "all"] if by_domain else []
        rows.append([*domain, *_rater_row(rater)])
    output.table(
        f"{measured.source}: {measured.items:,} items of {', '.join(measured.levels)}",
        [*(["domain"] if by_domain else []), *head],
        rows,
        left=2 if by_domain else 1,
    )
    pooled = measured.raters[-1]
    output.line()
    output.line("What all annotators take for what: true level by row, label by column")
    output.table(
        "",
        ["level", *measured.labels, "right"],
        [
            [level, *(f"{count:,}" for count in row), _right(row, place)]
            for place, (level, row) in enumerate(
                zip(measured.levels, pooled.confusion, strict=True)
            )
        ],
    )
    if measured.pairs:
        output.line()
        output.line("Annotators with each other, on the items that both labelled")
        output.table(
            "",
            ["annotator", "and", "items", "agreement", "κ", "95 %"],
            [
                [
                    p.a,
                    p.b,
                    f"{p.n:,}",
                    output.share(p.agreement),
                    *_kappa(p.kappa, p.kappa_interval),
                ]
                for p in measured.pairs
            ],
            left=2,
        )
    if measured.fleiss is not None:
        several = measured.fleiss
        value, interval = _kappa(several.kappa, several.kappa_interval)
        output.line()
        output.line(
            f"Fleiss' κ of {several.annotators} annotators on the {several.n:,} items that all "
            f"labelled: {value} {interval}".rstrip()
        )


def _rater_row(rater: Rater) -> list[str]:
    interval = _interval(rater.accuracy_interval)
    kappa = _kappa(rater.kappa, rater.kappa_interval)
    return [rater.annotator, f"{rater.n:,}", output.share(rater.accuracy), interval, *kappa]


def _right(row: tuple[int, ...], place: int) -> str:
    return output.share(row[place] / sum(row))


def _kappa(value: float | None, interval: Interval | None) -> list[str]:
    """κ and its interval; a dash where all labels are one and the same."""
    return ["-" if value is None else _signed(value), _interval(interval)]


def _interval(interval: Interval | None) -> str:
    return "" if interval is None else f"[{_signed(interval[0])}, {_signed(interval[1])}]"


def _signed(value: float) -> str:
    """Two decimals without the leading zero: .07, -.12."""
    text = output.share(abs(value))
    return f"-{text}" if value < 0 and text != ".00" else text
