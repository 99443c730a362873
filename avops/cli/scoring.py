"""What `avops score` and `avops sweep` share: their options, their setup and their tables."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avops.cli import hub, output, project
from avops.errors import UserError
from avops.recipe import Project, Source

if TYPE_CHECKING:
    from avops.score import ScoreSummary
    from avops.search import Evaluator, Setup


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of what to score, and how."""
    parser.add_argument("--levels", metavar="A,B,C", help="levels to score (default: the data's)")
    parser.add_argument("--data", metavar="FILE", help="items as JSON lines")
    parser.add_argument("--tokenizer", metavar="DIR", help="tokenizer (default: beside the base)")
    parser.add_argument(
        "--template",
        metavar="TEXT",
        help="text with {query} and {response}, \\n for a new line "
        "(default: the tokenizer's chat template)",
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 (default: auto)")
    parser.add_argument("--table", type=Path, metavar="FILE", help="full table, .npz or .csv")
    parser.add_argument("--force", action="store_true", help="replace earlier output files")
    parser.add_argument("--json", action="store_true", help="one JSON result on stdout")


def setup_of(args: argparse.Namespace, found: Project, sources: tuple[Source, ...]) -> Setup:
    """The setup of ``args`` with avops.toml's defaults, hub ids resolved.

    Raises UserError without data.
    """
    from avops.search import Setup

    data = args.data or found.data
    if data is None:
        raise UserError(f"no --data given and none in {project.FILE}; expected items as JSON lines")
    levels = found.levels
    if args.levels is not None:
        levels = tuple(part.strip() for part in args.levels.split(","))
        if "" in levels or len(set(levels)) < max(2, len(levels)):
            raise UserError(
                f"--levels {args.levels}: expected two or more different names, such as exp,gen,avd"
            )
    return Setup(
        base=hub.local(project.base_of(args.base, found), quiet=args.json),
        sources=tuple(
            replace(source, path=hub.local(source.path, quiet=args.json)) for source in sources
        ),
        data=data,
        levels=levels,
        tokenizer=args.tokenizer or found.tokenizer,
        template=found.template if args.template is None else args.template.replace("\\n", "\n"),
        device=args.device,
    )


def check_outputs(args: argparse.Namespace, *paths: Path) -> None:
    """Refuse outputs that exist, or tables of no known kind, before anything is measured.

    Raises OutputError.
    """
    from avops.disk import Staging
    from avops.score import check_table_path

    if args.table is not None:
        check_table_path(args.table)
        paths = (*paths, args.table)
    for path in paths:
        if sum(os.path.abspath(path) == os.path.abspath(other) for other in paths) > 1:
            raise UserError(f"{path}: two outputs of one command; give --table another name")
        Staging(path, directory=False, force=args.force).check(0)


def open_evaluator(setup: Setup, *, quiet: bool) -> Evaluator:
    """Load everything, saying so: importing torch and a model takes a while."""
    from avops.search import Evaluator

    if not quiet:
        output.status(f"loading {setup.base} and {setup.data}")
    return Evaluator(setup)


def save_table(
    args: argparse.Namespace, evaluator: Evaluator, scores: Any, candidates: Sequence[str]
) -> None:
    """Write ``--table`` if it was asked for."""
    from avops.score import write_table

    if args.table is not None:
        write_table(
            args.table, scores, candidates, evaluator.items, evaluator.plan, force=args.force
        )


def show_summary(title: str, summary: ScoreSummary) -> None:
    """Preference accuracies with intervals, ties, dominant levels, and mean log-probs."""
    levels = summary.levels
    rows = [
        [
            part.domain,
            str(part.n),
            *(
                f"{output.share(x.accuracy)} [{output.share(x.low)}, {output.share(x.high)}]"
                for x in part.levels
            ),
            str(part.ties),
            part.dominant or "none",
        ]
        for part in summary.domains
    ]
    columns = ("domain", "items", *levels, "ties", "dominant")
    output.table(f"{title}\nPref.Acc per level [95 % Wilson interval]", columns, rows)
    output.line()
    means = [
        [part.domain, *(f"{x.mean_logprob:.4f}" for x in part.levels)] for part in summary.domains
    ]
    output.table("mean log-prob per token (nats)", ("domain", *levels), means)
