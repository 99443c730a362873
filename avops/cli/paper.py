"""avops paper: the paper's tables and figures, measured again on the small world."""

from __future__ import annotations

import argparse
import contextlib
import io
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avops.cli import output
from avops.errors import UserError

if TYPE_CHECKING:
    from avops.paper import Book, Plan, Run


def add(verbs: Any) -> None:
    """Register the verb."""
    parser = verbs.add_parser(
        "paper",
        help="the paper's tables and figures, measured again on the small world",
        description="Build the small world with safety and helpfulness, measure every table and "
        "figure of arXiv 2410.19206 on it, and write DIR/paper.md. About 15 minutes a seed on two "
        "cores; a second run goes on where the first ended.",
    )
    parser.add_argument(
        "directory",
        nargs="?",
        type=Path,
        default=Path("avops-paper"),
        metavar="DIR",
        help="where everything is kept (default: avops-paper)",
    )
    seeds = parser.add_mutually_exclusive_group()
    seeds.add_argument("--seed", type=int, metavar="N", help="of data and training (default: 1)")
    seeds.add_argument(
        "--seeds",
        metavar="A,B,C",
        help="several, each in DIR/seed-N with a page of its own: DIR/paper.md says in how many "
        "of them each claim holds, and how far figures spread",
    )
    parser.add_argument(
        "--published",
        type=Path,
        metavar="FILE",
        help="the paper's own numbers, to stand beside those measured (default: those known to "
        "avops; DIR/published.toml is a copy to fill in)",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a few items and points: the whole path in a few minutes, and no figures to quote",
    )
    parser.add_argument("--json", action="store_true", help="one JSON result on stdout")
    # resume: what the message of an interrupt says of stages that are kept.
    parser.set_defaults(run=run, resume=True)


def run(args: argparse.Namespace) -> int:
    """Carry out the verb."""
    from avops.paper import Edition, Run, leave_shipped, load_published, write_page
    from avops.search import require_matplotlib

    _check_extra()
    require_matplotlib()
    begun = time.monotonic()
    directory, seeds = args.directory, _seeds(args)
    say = _Say(quiet=args.json)
    plan = _plan(quick=args.quick)
    edition = Edition(plan, load_published(args.published), args.quick)
    several = args.seeds is not None
    runs, pages = [], []
    for seed in seeds:
        own = directory / f"seed-{seed}" if several else directory
        book = _measure(own, seed, plan, say)
        pages.append(write_page(own, [Run(seed, book)], edition))
        runs.append(Run(seed, book, f"seed-{seed}/figures" if several else "figures"))
    page = write_page(directory, runs, edition) if several else pages[0]
    leave_shipped(directory)
    if args.json:
        output.result({"page": str(page), "runs": [_to_dict(one) for one in runs]})
    else:
        output.line(output.plain(f"{page}  in {output.seconds(time.monotonic() - begun)}"))
    return 0


def _seeds(args: argparse.Namespace) -> list[int]:
    if args.seeds is None:
        return [1 if args.seed is None else args.seed]
    try:
        seeds = [int(text) for text in args.seeds.split(",")]
    except ValueError:
        raise UserError(f"--seeds {args.seeds}: expected whole numbers such as 1,2,3") from None
    if len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds {args.seeds}: a seed twice, expected different ones")
    return seeds


def _to_dict(run: Run) -> dict[str, Any]:
    book = run.book
    stages = {name: book[name] for name in book.made}
    return {"seed": run.seed, "identity": book.identity, "stages": stages}


def _measure(directory: Path, seed: int, plan: Plan, say: _Say) -> Book:
    """Everything of one seed, in ``directory``; what is there already is not measured again."""
    from avops.demo import build
    from avops.paper import WORLD, Book, Lab, Stopwatch, all_stages

    say.line(f"seed {seed}: the small world, with safety and helpfulness")
    watch = Stopwatch(say)
    world = build(directory / "world", seed=seed, size="full", report=watch)
    lab = Lab(world, plan, directory / "data")
    identity = {"seed": seed, "plan": plan.to_dict(), "world": _digest(directory / "world")}
    book = Book(directory / "paper.json", identity)
    stages = ("data", "base", *(f"align {name}" for name in world.aligned))
    if made := watch.made(stages, world.made):
        times = {**(book[WORLD] if WORLD in book.made else {}), **made}
        wall, busy = (sum(pair[i] for pair in times.values()) for i in (0, 1))
        book.note(WORLD, wall, busy, times)
    every = all_stages(lab, directory / "figures", _quietly, book.__getitem__)
    for number, stage in enumerate(every, 1):
        reused = book.has(stage.name, stage.needs)
        say.line(f"{number}/{len(every)} {stage.name}: {stage.why}")
        book.make(stage.name, stage.needs, stage.work)
        taken = output.seconds(book.seconds(stage.name))
        say.line(f"    {'reused, made in' if reused else 'done in'} {taken}")
    return book


def _plan(*, quick: bool) -> Plan:
    from avops.paper import Plan

    if not quick:
        return Plan()
    return Plan(lams="-1.5:1.5:.5", grid="-1:1:.5", answers=4, targets=Plan.targets[:1], limit=10)


def _check_extra() -> None:
    """Before an hour's work: what the later stages need. Raises MissingExtraError."""
    from importlib.util import find_spec

    from avops.errors import MissingExtraError

    for package, name in (("trl", "trl"), ("sklearn", "scikit-learn"), ("peft", "peft")):
        if find_spec(package) is None:
            raise MissingExtraError(name, "align", "avops paper")


def _digest(world: Path) -> str:
    import hashlib

    from avops.demo.manifest import NAME

    return hashlib.sha256((world / NAME).read_bytes()).hexdigest()


def _quietly(command: Sequence[str]) -> None:
    """Run a command as the user would type it; its own output is not shown.

    Raises what it raises, and AvopsError where it ends otherwise than well.
    """
    from avops.cli.main import parser
    from avops.errors import AvopsError

    args = parser().parse_args(command)
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        code = args.run(args)
    if code == 130:
        raise KeyboardInterrupt
    if code:
        raise AvopsError(f"avops {' '.join(command)}: ended with exit code {code}")


class _Say:
    """Stages as lines on stderr."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet

    def line(self, text: str) -> None:
        """One line."""
        if not self._quiet:
            output.status(text)
