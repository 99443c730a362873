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

if TYPE_CHECKING:
    from avops.paper import Plan


def add(verbs: Any) -> None:
    """Register the verb."""
    parser = verbs.add_parser(
        "paper",
        help="the paper's tables and figures, measured again on the small world",
        description="Build the small world with safety and helpfulness, measure every table and "
        "figure of arXiv 2410.19206 on it, and write DIR/paper.md. About 20 minutes on two cores; "
        "a second run goes on where the first ended.",
    )
    parser.add_argument(
        "directory", nargs="?", type=Path, default=Path("avops-paper"), metavar="DIR"
    )
    parser.add_argument("--seed", type=int, default=1, help="of data and training (default: 1)")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a few items and points: the whole path in a few minutes, and no figures to quote",
    )
    parser.add_argument("--json", action="store_true", help="one JSON result on stdout")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Carry out the verb."""
    from avops.demo import build
    from avops.paper import Book, Lab, all_stages, write_page
    from avops.search import require_matplotlib

    require_matplotlib()
    _check_extra()
    begun = time.monotonic()
    directory = args.directory
    say = _Say(quiet=args.json)
    say.line("the small world, with safety and helpfulness")
    world = build(directory / "world", seed=args.seed, size="full", report=say)
    plan = _plan(quick=args.quick)
    lab = Lab(world, plan, directory / "data")
    identity = {"seed": args.seed, "plan": plan.to_dict(), "world": _digest(directory / "world")}
    book = Book(directory / "paper.json", identity)
    every = all_stages(lab, directory / "figures", _quietly, book.__getitem__)
    for number, stage in enumerate(every, 1):
        reused = book.has(stage.name, stage.needs)
        say.line(f"{number}/{len(every)} {stage.name}: {stage.why}")
        book.make(stage.name, stage.needs, stage.work)
        taken = output.seconds(book.seconds(stage.name))
        say.line(f"    {'reused, made in' if reused else 'done in'} {taken}")
    page = write_page(directory, book, world, plan, quick=args.quick)
    if args.json:
        stages_made = {name: book[name] for name in book.made}
        output.result({"page": str(page), "identity": book.identity, "stages": stages_made})
    else:
        output.line(f"\n{page}  in {output.seconds(time.monotonic() - begun)}")
    return 0


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
    """Stages as lines on stderr; training shows no bar of its own."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet

    def line(self, text: str) -> None:
        """One line."""
        if not self._quiet:
            output.status(text)

    def stage(self, title: str, why: str) -> None:
        """A stage of the world begins."""
        self.line(f"  {title}: {why}")

    def progress(self, done: int, total: int, note: str = "") -> None:
        """Not shown."""

    def done(self, text: str) -> None:
        """It ended."""
        self.line(f"    {text}")
