"""avops demo: a small world of its own, and the user's own commands run in it."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from avops.cli import output, project

_DOMAINS = ("med", "fin", "leg")
# Names of their own: merged.safetensors and sweep-med.png stay free for the user's first commands.
_MERGED, _FIGURE, _TABLE = "lawyer.safetensors", "figures/med.png", "figures/med.npz"
_SWEPT, _RANGE = "med", "-1.5:1:.1"
_MERGE = ("merge", "base.safetensors", "--av", "med:-1", "fin:-1", "leg:.6")
_PROJECT = """\
# Names and defaults for avops commands in this directory; flags win over them.
base = "base.safetensors"          # config and tokenizer are beside it
data = "data/test.jsonl"
levels = ["exp", "gen", "avd"]     # expert, generic, avoidance

[av]
med = "avs/med.safetensors"
fin = "avs/fin.safetensors"
leg = "avs/leg.safetensors"
"""


def add(verbs: Any) -> None:
    """Register the verb."""
    parser = verbs.add_parser(
        "demo",
        help="make a small world and run the whole path in it",
        description="Train a tiny base model on synthetic text, align it once per domain, extract "
        "the alignment vectors, merge, score and sweep: a few minutes on a CPU, nothing is "
        "downloaded. A second run reuses what the first made.",
    )
    parser.add_argument(
        "directory",
        nargs="?",
        type=Path,
        default=Path("avops-demo"),
        metavar="DIR",
        help="where everything is kept (default: avops-demo)",
    )
    parser.add_argument(
        "--seed", type=int, default=1, metavar="N", help="of data and training (default: 1)"
    )
    parser.add_argument(
        "--size",
        choices=("tiny", "small", "full"),
        default="small",
        help="of the world; full has safety and helpfulness, too (default: small)",
    )
    # resume: what the message of an interrupt says of stages that are kept.
    parser.set_defaults(run=run, resume=True)


def run(args: argparse.Namespace) -> int:
    """Carry out the verb."""
    from avops.demo import build
    from avops.search import require_matplotlib

    require_matplotlib()  # before minutes of training: the last step draws
    start = time.monotonic()
    report = _Report()
    build(args.directory, seed=args.seed, size=args.size, report=report)
    with _inside(args.directory):
        _write_project()
        _commands(report)
    taken = output.seconds(time.monotonic() - start)
    output.line(
        f"\nDone in {taken}. The data are synthetic and the recipe calibrated: see the README.\n"
        f"Try next, in {args.directory}:\n"
        "  avops merge base.safetensors --av med:-1 fin:-1 leg:.6\n"
        "  avops score --av med:.5 leg:-1 --levels exp,gen,avd\n"
        "  avops sweep --av leg:-1.5:1:.25 med:-1\n"
        "  avops generate --compare med:-1,1 -- "
        "'For two weeks I have had a stiff neck. What should I do?'"
    )
    return 0


def _commands(report: _Report) -> None:
    for name in _DOMAINS:
        _step(
            report,
            ("extract", "base.safetensors", f"aligned/{name}.safetensors"),
            f"avs/{name}.safetensors",
            "an alignment vector is what alignment changed: aligned − base",
        )
    report.stage("inspect the vectors", "how large they are, and how much they share")
    _avops(("inspect", *_DOMAINS))
    _step(report, _MERGE, _MERGED, "one model: no medicine, no finance, some law")
    report.stage("score the base and the merge", "which level does each prefer, domain by domain?")
    _avops(("score", "--levels", "exp,gen,avd"))
    output.line()
    _avops(("score", _MERGED, "--levels", "exp,gen,avd"))
    _sweep(report)


def _step(report: _Report, command: tuple[str, ...], out: str, why: str) -> None:
    """Run a command that writes a file, unless its output is newer than all of its inputs."""
    target = Path(out)
    report.stage(" ".join(command[:1]) + f" {target}", why)
    if target.exists() and _newer(target, [Path("world.json"), Path("avops.toml")]):
        report.done(f"reusing {target}")
        return
    _avops((*command, "-o", out, *(("--force",) if target.exists() else ())))


def _sweep(report: _Report) -> None:
    report.stage(
        f"sweep λ of {_SWEPT} over {_RANGE}",
        "the dial: how does each level's share move, in its own domain and in the others?",
    )
    figure, saved = Path(_FIGURE), Path(_TABLE)
    inputs = [Path("world.json"), Path("avops.toml"), Path(f"avs/{_SWEPT}.safetensors")]
    if figure.exists() and saved.exists() and _newer(saved, inputs):
        report.done(f"reusing {saved}")
        _show_saved(saved)
        return
    command = ("sweep", "--av", f"{_SWEPT}:{_RANGE}", "-o", _FIGURE, "--table", _TABLE)
    _avops((*command, *(("--force",) if figure.parent.exists() else ())))


def _show_saved(saved: Path) -> None:
    from avops.cli import sweep
    from avops.score import load_items, read_table
    from avops.search import from_scores

    table = read_table(saved)
    lams = tuple(name.rpartition(":")[2] for name in table.candidates)
    items = load_items("data/test.jsonl", levels=table.levels)
    sweep.show(from_scores(_SWEPT, lams, (), table.scores, items))


def _newer(target: Path, inputs: list[Path]) -> bool:
    return all(target.stat().st_mtime_ns >= path.stat().st_mtime_ns for path in inputs)


def _write_project() -> None:
    path = Path(project.FILE)
    if not path.exists():
        path.write_text(_PROJECT, encoding="utf-8")


def _avops(command: tuple[str, ...]) -> None:
    """Run a command as the user would type it, and show it."""
    from avops.cli.main import parser

    output.line(f"$ avops {' '.join(command)}")
    args = parser().parse_args(command)
    args.run(args)


class _Report:
    """Shows the stages of the demo: a line what and why, then progress."""

    def __init__(self) -> None:
        self._number = 0
        self._bar: contextlib.AbstractContextManager[Callable[[int, int], None]] | None = None
        self._update: Callable[[int, int], None] | None = None

    def stage(self, title: str, why: str) -> None:
        """A new stage begins."""
        self._close()
        self._number += 1
        output.line(f"\n{self._number}. {title}: {why}")
        sys.stdout.flush()

    def progress(self, done: int, total: int, note: str = "") -> None:  # noqa: ARG002
        """The stage is at ``done`` of ``total``."""
        if self._update is None:
            self._bar = output.progress("   training", unit="steps")
            self._update = self._bar.__enter__()
        self._update(done, total)

    def done(self, text: str) -> None:
        """The stage ended."""
        self._close()
        output.line(f"   {text}")

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.__exit__(None, None, None)
        self._bar = self._update = None


@contextlib.contextmanager
def _inside(directory: Path) -> Iterator[None]:
    # contextlib.chdir came with Python 3.11.
    before = Path.cwd()
    os.chdir(directory)
    try:
        yield
    finally:
        os.chdir(before)
