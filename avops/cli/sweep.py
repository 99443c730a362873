"""avops sweep: preference accuracy against one λ, for every domain."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avops.cli import output, project, scoring
from avops.cli.options import add_rules
from avops.errors import UserError
from avops.score.wording import counted

if TYPE_CHECKING:
    from avops.recipe import Term
    from avops.score import ScoreTable
    from avops.search import Evaluator, Setup, Sweep

_FORMATS = (".png", ".svg", ".pdf")


def add(verbs: Any) -> None:
    """Register the verb."""
    parser = verbs.add_parser(
        "sweep",
        help="preference accuracy against one λ: table, CSV and figure",
        description="Vary one λ over START:STOP:STEP and measure every domain at every point. "
        "Weights are set in place from the pristine base; nothing is written but the results.",
    )
    project.add_base(parser)
    project.add_av(parser, "one range NAME:START:STOP:STEP; other terms keep one λ", required=True)
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        metavar="FIGURE",
        help="figure: .png, .svg or .pdf; the CSV goes beside it (default: sweep-NAME.png)",
    )
    add_rules(parser)
    scoring.add_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Carry out the verb."""
    from avops.disk import write_file
    from avops.recipe import parse_sweep
    from avops.search import require_matplotlib, sweep, sweep_figure, to_csv

    found = project.load_project()
    source, points = parse_sweep(project.terms_of(args.av), project.sources(found))
    name = source.name if source.name in found.avs else Path(source.name).stem
    figure = args.out or Path(f"sweep-{name}.png")
    if figure.suffix not in _FORMATS:
        raise UserError(f"-o {figure}: expected a name ending in {', '.join(_FORMATS)}")
    table = figure.with_suffix(".csv")
    setup = scoring.setup_of(args, found, tuple(term.source for term in points[0]))
    scoring.check_outputs(args, figure, table)
    require_matplotlib()
    evaluator = scoring.open_evaluator(setup, quiet=args.json)
    evaluator.load()
    with output.progress(f"sweeping {source.name}", unit="tokens", quiet=args.json) as progress:
        result = sweep(evaluator, points, source.name, progress)
    if args.table is not None:
        scoring.save_table(args, _table(evaluator, points, result))
    write_file(table, to_csv(result).encode(), force=args.force)
    write_file(figure, sweep_figure(result, format=figure.suffix[1:]), force=args.force)
    if args.json:
        output.result(_json(result, setup, table, figure))
    else:
        show(result)
        output.line(f"\n{figure}  {table}")
    if result.interrupted:
        asked = counted(result.asked, "point")
        output.note(f"interrupted: {len(result.lams)} of {asked} measured")
        return 130
    return 0


def _table(evaluator: Evaluator, points: Sequence[Sequence[Term]], result: Sweep) -> ScoreTable:
    from avops.search import Wanted, new_table

    table = new_table(evaluator, about=True)
    for terms, scores in zip(points, result.scores, strict=False):
        table = table.append(Wanted(tuple(terms)).candidate(0, evaluator.device), scores)
    return table


def _json(result: Sweep, setup: Setup, table: Path, figure: Path) -> dict[str, Any]:
    return {
        "base": setup.base,
        "av": result.name,
        "fixed": list(result.fixed),
        "data": setup.data,
        "csv": str(table),
        "figure": str(figure),
        "interrupted": result.interrupted,
        "points": [
            {"lam": lam, **summary.to_dict()}
            for lam, summary in zip(result.lams, result.summaries, strict=True)
        ],
    }


def show(result: Sweep) -> None:
    """Pref.Acc at every λ: a column per domain and level, the dominant level marked."""
    columns = ["λ", *(f"{domain} {level}" for domain in result.domains for level in result.levels)]
    rows = []
    for lam, summary in zip(result.lams, result.summaries, strict=True):
        cells = [
            f"{output.share(part.accuracy)}{'*' if summary[domain].dominant == part.level else ' '}"
            for domain in result.domains
            for part in summary[domain].levels
        ]
        rows.append([lam, *cells])
    fixed = f", {' '.join(result.fixed)} fixed" if result.fixed else ""
    output.table(f"Pref.Acc against λ of {result.name}{fixed} (*: dominant)", columns, rows, left=0)
