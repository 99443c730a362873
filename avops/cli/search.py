"""avops search: λ for every wanted combination, measured, confirmed and kept."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avops.cli import output, project, scoring
from avops.cli.options import add_rules
from avops.errors import NonFiniteError, UserError
from avops.score.wording import counted
from avops.version import __version__

if TYPE_CHECKING:
    from avops.cli.search_study import Asked
    from avops.search.runner import Search
    from avops.search.store import Store
    from avops.search.strategies.strategy import Strategy, Told

_EXAMPLES = """\
examples:
  avops search --av med fin leg                        every combination, λ from -1 to 1 by 0.1
  avops search --av med:-1.5:1.5:.1 fin leg:.6         a range, the default one, a fixed λ
  avops search --want med=avd,fin=avd,leg=exp'>=.8'    one combination, with a least share
  avops search --guard-data help=pairs.jsonl --guard help'>=.55'
"""


def add(verbs: Any) -> None:
    """Register the verb."""
    parser = verbs.add_parser(
        "search",
        help="λ for a wanted level in every domain, or for every combination of them",
        description="Choose points, measure them on one live model, confirm the winners on "
        "held-out items. Every measurement is kept at once: the same command goes on where the "
        "last one ended.",
        epilog=_EXAMPLES,
    )
    project.add_base(parser)
    parser.add_argument(
        "--av",
        nargs="+",
        action="append",
        metavar="NAME[:λ]",
        help="a name (λ from -1 to 1 by 0.1), NAME:START:STOP:STEP, or NAME:λ fixed "
        "(default: all of avops.toml)",
    )
    add_rules(parser)
    _add_wanted(parser)
    _add_search(parser)
    _add_run(parser)
    scoring.add_measuring(parser)
    parser.set_defaults(run=run)


def _add_wanted(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what is wanted")
    group.add_argument(
        "--want",
        nargs="+",
        action="append",
        metavar="DOMAIN=LEVEL,…",
        help="a level for each domain, with a least share: leg=exp>=.8; or all (the default)",
    )
    group.add_argument(
        "--guard-data",
        nargs="+",
        default=[],
        metavar="NAME=FILE",
        help="a second data set, such as preference pairs",
    )
    group.add_argument(
        "--guard",
        nargs="+",
        default=[],
        metavar="NAME>=SHARE",
        help="of its items the first level (NAME=LEVEL>=SHARE: another) must win this share",
    )
    group.add_argument(
        "--holdout",
        default="auto",
        metavar="SHARE|FILE|none",
        help="items that confirm winners (default: .5 where every domain has 20 items or more)",
    )


def _add_search(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("how it is searched")
    group.add_argument(
        "--strategy",
        default="active",
        metavar="NAME",
        help="active, grid, grid:best, refine, optuna:tpe, … (default: active)",
    )
    group.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the strategy (default: 0)"
    )
    group.add_argument("--max-sum", metavar="S", help="only points with Σ|λ| of at most S")
    group.add_argument(
        "--evaluations",
        type=int,
        metavar="N",
        help="at most N points of the search in all; winners and baselines follow",
    )
    group.add_argument(
        "--hours",
        type=float,
        metavar="H",
        help="ask for no more points after H hours; winners follow",
    )
    group.add_argument(
        "--batch",
        type=int,
        metavar="N",
        help="points asked for at once (default: 4, or as many as workers; 16 with --ray)",
    )
    group.add_argument(
        "--baselines",
        default="all",
        metavar="A,B",
        help="measured, too: base, sweeps (5 points an axis), prompting; all (default) or none",
    )
    group.add_argument(
        "--instructions",
        metavar="FILE",
        help="your own for prompting: level = text, .toml or .json",
    )
    group.add_argument(
        "--race",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="for one wanted combination: stop measuring candidates that clearly lose to the best "
        "hit; pays with the grids",
    )
    group.add_argument(
        "--certify",
        action="store_true",
        help="go on until every plausible point of what was not found is measured",
    )


def _add_run(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("where and on what it runs")
    group.add_argument(
        "--run",
        dest="directory",
        type=Path,
        metavar="DIR",
        help="keeps every measurement; the same search goes on from it (default: "
        "search-XXXXXXXX, the same for the same search)",
    )
    group.add_argument(
        "--dry-run", action="store_true", help="time one evaluation, show the plan, measure no more"
    )
    group.add_argument(
        "--workers", type=int, metavar="N", help="processes (default: one for each GPU)"
    )
    group.add_argument(
        "--ray",
        nargs="?",
        const="local",
        metavar="ADDRESS",
        help="workers on a Ray cluster: one for each GPU, or each node",
    )
    group.add_argument(
        "--rounding",
        default="nearest",
        metavar="nearest|dither",
        help="of weights, as they will be saved; dither:SEED for another seed than 0 (default: "
        "nearest)",
    )
    group.add_argument(
        "--norm",
        choices=("token", "sum", "byte", "char"),
        default="token",
        help="what a response's log-probs are divided by; sum: nothing (default: token)",
    )
    group.add_argument("--json", action="store_true", help="one JSON result on stdout")


def run(args: argparse.Namespace) -> int:
    """Carry out the verb."""
    from avops.cli.search_study import read_request

    _check_numbers(args)
    asked = read_request(args)
    if args.dry_run:
        return _dry_run(asked, quiet=args.json)
    return _search(args, asked)


def _dry_run(asked: Asked, *, quiet: bool) -> int:
    from avops.cli import search_show
    from avops.search.points import Job

    evaluator, space = asked.evaluator, asked.study.space
    evaluator.load()
    point = space.nearest((0.0,) * len(space.axes))
    job = Job(point, terms=space.terms(point))
    outcome = evaluator.evaluate(job)  # the first one also checks the scorer
    if outcome.broken:
        raise NonFiniteError(f"{space.name(point)}: {outcome.broken}")
    seconds = evaluator.evaluate(job).seconds
    if quiet:
        output.result(search_show.plan_data(asked, seconds))
    else:
        search_show.show_plan(asked, seconds)
    return 0


def _search(args: argparse.Namespace, asked: Asked) -> int:
    from avops.cli import search_show
    from avops.cli.search_crew import open_crew
    from avops.search.budget import Budget
    from avops.search.confirm import after_jobs, measure_after
    from avops.search.item_names import note_items
    from avops.search.report import Report, facts_of
    from avops.search.report.facts import ENDED
    from avops.search.runner import Search
    from avops.search.store import Store
    from avops.search.strategies.registry import make_strategy
    from avops.search.verdicts import picks

    budget = Budget(args.evaluations, args.hours)
    options = {"certify": True} if args.certify else {}
    strategy = make_strategy(asked.study.strategy, asked.study.problem, **options)
    watch = search_show.Watch(search_show.usual(asked), quiet=args.json)
    with Store.open(asked.directory, asked.study, asked.identity) as store:
        _note_command(store, asked.directory)
        note_items(store, asked.evaluator.sets)
        with open_crew(args, asked) as crew:
            search = Search(store, strategy, crew, budget, watch)
            try:
                known = search.measured
                seconds = search.begin()
                if not args.json:
                    search_show.show_plan(asked, seconds, known=known)
                watch.begin()
                why = search.run()
                told = search.told()
                winners = picks(asked.study.problem, told)
                jobs = after_jobs(store, [*winners.values()], tuple(asked.evaluator.instructions))
                watch.after(len(jobs))
                measure_after(store, jobs, crew, watch)
            except KeyboardInterrupt:
                watch.close()
                output.note(
                    f"interrupted: {counted(search.measured, 'point')} kept in "
                    f"{asked.directory}: the same command goes on from there"
                )
                return 130
            finally:
                watch.close()
                _note_times(search)
            exhausted = args.certify and search.finished and _certified(strategy, told, asked)
            store.note(ENDED, why=why, exhausted=exhausted)
            report = Report(facts_of(store, strategy=strategy))
            result = search_show.Found(report, search.clock, asked.workers, search.out)
    if args.json:
        output.result(result.to_dict())
    else:
        result.show()
    return 0


def _certified(strategy: Strategy, told: Told, asked: Asked) -> bool:
    """Whether the model that was asked to certify may be believed, and looked at every point."""
    from avops.search.strategies.step import looks_at_all

    if not looks_at_all(asked.study.problem):
        return False
    outlook = strategy.outlook(told)
    return outlook is not None and outlook.fit.trusted


def _note_command(store: Store, directory: Path) -> None:
    from avops.search.report.facts import COMMAND

    store.note(
        COMMAND,
        words=["avops", *sys.argv[1:]],
        version=__version__,
        directory=str(Path.cwd()),
        from_run=os.path.relpath(Path.cwd(), directory),
    )


def _note_times(search: Search) -> None:
    clock = search.clock
    if clock.evaluations:
        search.store.note(
            "times",
            evaluations=clock.evaluations,
            workers=search.crew.size,
            wall=clock.wall,
            loading=clock.loading,
            setting=clock.setting,
            scoring=clock.scoring,
            keeping=clock.keeping,
            planner=clock.planner,
            waited=clock.waited,
        )


def _check_numbers(args: argparse.Namespace) -> None:
    for flag in ("evaluations", "batch", "workers"):
        number = getattr(args, flag)
        if number is not None and number < 1:
            raise UserError(f"--{flag} is {number}, expected 1 or more")
    if args.hours is not None and not 0 < args.hours < 1e6:
        raise UserError(f"--hours is {args.hours:g}, expected a number above 0")
    if args.seed < 0:
        raise UserError(f"--seed is {args.seed}, expected 0 or more")
    if args.certify and args.strategy != "active":
        raise UserError(
            f"--certify with --strategy {args.strategy}: it needs active's model of the scores; "
            "leave one of them out"
        )
    if args.ray and args.workers is not None and args.device not in ("auto", "cpu", "cuda"):
        raise UserError(f"--ray with --device {args.device}: the cluster gives each worker its own")
