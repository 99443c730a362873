"""avops status: how a search is getting on, or how it ended."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avops.cli import output
from avops.score.wording import counted

if TYPE_CHECKING:
    from avops.search.report.status import Status


def add(verbs: Any) -> None:
    """Register the verb."""
    parser = verbs.add_parser(
        "status",
        help="how a search is getting on; export all of its scores",
        description="Say what a search has done so far, also while it runs: what was measured and "
        "found, how fast, the last event, the workers.",
    )
    parser.add_argument("run_directory", type=Path, metavar="RUN", help="run directory")
    parser.add_argument(
        "--export",
        type=Path,
        metavar="FILE",
        help="write all scores, a row per point, item and level: .csv or .parquet",
    )
    parser.add_argument("--force", action="store_true", help="replace an earlier export")
    parser.add_argument("--json", action="store_true", help="one JSON result on stdout")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Carry out the verb."""
    from avops.search.report.export import export
    from avops.search.report.status import status_of
    from avops.search.store import Store

    rows = None
    with Store.read(args.run_directory) as store:
        if args.export is not None:
            rows = export(store, args.export, force=args.force)
        state = status_of(store)
    if args.json:
        more = {} if rows is None else {"export": str(args.export), "rows": rows}
        output.result({**state.to_dict(), **more})
        return 0
    show(state)
    if rows is not None:
        output.line(f"\n{args.export}  {counted(rows, 'row')}")
    return 0


def show(state: Status) -> None:
    """The state on stdout."""
    from avops.search.report.status import ago
    from avops.search.report.tables import duration, percent

    output.line(f"{state.run}: {_state(state)}")
    share = percent(state.measured / state.points)
    more = [f"{state.out:,} put out of the race on some items"] if state.out else []
    more += [f"{state.broken:,} left out, not finite there"] if state.broken else []
    more += [f"{state.held:,} on held-out items"] if state.held else []
    more += [counted(state.baselines, "baseline")] if state.baselines else []
    more += [f"{state.waiting:,} asked for and not there yet"] if state.waiting else []
    lines = [
        ("measured", f"{state.measured:,} of {counted(state.points, 'point')} ({share})"),
        ("found", f"{state.found:,} of {counted(state.wanted, 'combination')}"),
        ("strategy", f"{state.strategy}{': ' if state.note else ''}{state.note}"),
        ("time", f"{duration(state.seconds)} of work"),
    ]
    if more:
        lines.insert(1, ("besides", ", ".join(more)))
    if state.pace:
        lines.append(
            ("pace", f"{duration(state.pace)} per point, {3600 / state.pace:,.0f} an hour")
        )
    if state.left is not None:
        lines.append(("left", f"about {duration(state.left)} for the whole grid"))
    since = ago(state.last_at)
    lines.append(("last", state.last + ("" if since is None else f", {duration(since)} ago")))
    for name, value in lines:
        output.line(f"  {name:9} {output.plain(value)}")
    rows = [
        (
            worker.name,
            f"{worker.evaluations:,}",
            duration(worker.seconds),
            f"{duration(ago(worker.last) or 0)} ago",
        )
        for worker in state.workers
    ]
    if rows:
        output.line()
        output.table("", ("worker", "evaluations", "each", "last"), rows)


def _state(state: Status) -> str:
    if state.process is not None:
        who = f" (process {state.process})" if state.process else ""
        return f"running{who}"
    if state.ended is not None:
        return f"ended: {state.ended}"
    return "not running; it did not come to its end: the same `avops search` goes on from there"
