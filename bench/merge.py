"""Merging on disk as whole processes: avops, its floor, mergekit, torch loops and `cp`, in turn.

    python -m bench.merge [--mib 2048] [--runs 5] [--mergekit PYTHON] [--save]
    python -m bench.merge --cold | --scale | --memory [GIB] | --lora [N ...]

Work: a sharded bf16 base of Mistral's shapes with three aligned checkpoints (random), λ -1, -1, .6.
Every process starts from nothing, imports included. The floor (bench/floor) is a C++ program that
does only what a merge must. avops and the floor flush their output to the disk; the others do not,
so an fsync of every output follows its run and counts. Figures are printed only if avops and the
floor wrote the bytes of avops's reference backend in every run; for peers the differing elements
are counted.

--cold      inputs evicted from the page cache before each run, and how fast the disk alone reads
--scale     time against terms and sizes
--memory    peak memory with a tensor of more than 2^31 elements, and with GIB of sparse files
--lora      one adapter and three (or N), beside PEFT and a full merge (bench/lora.py)
--save      writes its part of bench/results/merge.json
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench import cache, compare, lora, memory, models, peers, scale
from bench.floor import build, write_plan
from bench.peers import Job, Row
from bench.processes import Run, clear, launch, spread, summary
from bench.report import machine, table

RESULTS = Path(__file__).parent / "results" / "merge.json"
LAMS = models.LAMS[:3]
# What a peer's slow runs are measured at most.
SLOW_RUNS = 3


class Bench:
    """Rows that do one job in turn, each run checked."""

    def __init__(self, job: Job, rows: Sequence[Row], prepare: Callable[[], None]) -> None:
        self.job, self.rows, self.prepare = job, rows, prepare
        self.truth = job.out("reference")
        self.runs: dict[str, list[Run]] = {row.key: [] for row in rows}
        self.differing: dict[str, compare.Difference] = {}

    def make_truth(self, key: str = "avops") -> None:
        """The reference's output for the row of ours with that key."""
        truth, job = self.truth_of(key), self.job
        (row,) = [row for row in (*self.rows, peers.avops(job)) if row.key == key][:1]
        argv = [word.replace(str(job.out(key)), str(truth)) for word in row.argv]
        launch(argv, truth, job.scratch / "log.txt", {"AVOPS_BACKEND": "reference"})

    def truth_of(self, key: str) -> Path:
        """Rows of ours do the same job, but for the full merge beside adapters."""
        return self.job.out(f"reference-{key}") if key == lora.FULL else self.truth

    def measure(self, runs: int, slow_runs: int) -> None:
        """Each row in turn, once for nothing (to load its libraries), then the runs that count."""
        for number in range(-1, max(runs, slow_runs)):
            for row in self.rows:
                if number < (slow_runs if row.slow else runs):
                    run = self._once(row)
                    self.runs[row.key] += [run] if number >= 0 else []

    def _once(self, row: Row) -> Run:
        out = self.job.out(row.key)
        clear(out)
        self.prepare()
        run = launch(row.argv, out, self.job.scratch / "log.txt")
        if row.ours:
            if not compare.same_bytes(out, self.truth_of(row.key)):
                raise SystemExit(f"{row.name}: its output is not the reference's: no figures")
        elif row.merges and row.key not in self.differing:
            self.differing[row.key] = compare.difference(out, self.truth)
        clear(out)
        return run

    def median(self, key: str, what: str = "flushed") -> float | None:
        found = [getattr(run, what) for run in self.runs.get(key, ())]
        return statistics.median(found) if found else None

    def figures(self) -> dict[str, Any]:
        rows = {row.name: summary(self.runs[row.key]) for row in self.rows}
        names = {row.key: row.name for row in self.rows}
        differing = {names[key]: vars(found) for key, found in self.differing.items()}
        return {"rows": rows, "differing": differing}

    def lines(self) -> list[list[str]]:
        floor, ours = self.median("floor"), self.median("avops")
        found = []
        for row in self.rows:
            runs = self.runs[row.key]
            flushed = statistics.median(run.flushed for run in runs)
            ratios = [f"{flushed / other:.2f}×" if other else "–" for other in (floor, ours)]
            found.append(
                [
                    f"{row.name} ({len(runs)})",
                    spread([run.flushed for run in runs]),
                    f"{statistics.median(run.wall for run in runs):.2f}",
                    *ratios,
                    f"{statistics.median(run.cpu for run in runs):.2f}",
                    f"{max(run.rss for run in runs):.0f}",
                ]
            )
        return found

    def show(self, title: str) -> None:
        columns = ("process (runs)", "wall s, flushed", "unflushed", "of floor", "of avops")
        table(title, (*columns, "CPU s", "peak MiB"), self.lines())
        for row in self.rows:
            if found := self.differing.get(row.key):
                why = f" ({row.why})" if found.differing else ""
                print(f"  {row.name}: {found}{why}")


def compare_processes(directory: Path, args: argparse.Namespace) -> dict[str, Any]:
    """The table, warm or cold."""
    model = models.Model.of(args.mib)
    base, aligned = models.make(directory, model, len(LAMS))
    job = Job(base, tuple(aligned), LAMS, directory)
    files = cache.data_files([base, *aligned])
    prepare = cache.evict if args.cold else cache.warm
    program = build(directory)
    plan = directory / "plan.txt"
    write_plan(plan, base, aligned, LAMS)
    rows = [peers.avops(job)]
    if program is None:
        print("no C++ compiler: no floor")
    else:
        rows.append(peers.floor(job, program, plan))
        if not args.cold:
            rows.append(peers.floor(job, program, plan, "read=mmap", "piece=1024", key="mapped"))
        else:
            rows += _reading(job, program, plan)
    rows += _other_rows(job, args)
    bench = Bench(job, rows, lambda: prepare(files))
    bench.make_truth()
    bench.measure(args.runs, min(args.runs, SLOW_RUNS))
    read = cache.size(files)
    state = "inputs evicted" if args.cold else "page cache warm"
    title = f"{model.nbytes / 2**30:.2f} GiB bf16, {len(LAMS)} aligned checkpoints, {state}"
    bench.show(title)
    found = {"model_bytes": model.nbytes, "read_bytes": read, **bench.figures()}
    if args.cold and program is not None:
        found["reading"] = _bandwidth(bench, read, model.nbytes)
    return found


def _reading(job: Job, program: Path, plan: Path) -> list[Row]:
    ways = {
        "read4": ("reading directly, 4 threads", "read=direct", "cold_threads=4"),
        "read8": ("reading directly, 8 threads", "read=direct", "cold_threads=8"),
        "cached4": ("reading buffered, 4 threads", "read=buffered", "threads=4"),
    }
    start = (str(program), str(plan))
    return [
        Row(key, name, (*start, str(job.out(key)), "write=none", *options), merges=False)
        for key, (name, *options) in ways.items()
    ]


def _bandwidth(bench: Bench, read: int, written: int) -> dict[str, float]:
    """Bytes per second of avops and the floor, by the best of bare reading.

    Reads and writes may share what the disk can do: then a merge reads at a share below 1.
    """
    wall = min(bench.median(key, "wall") or math.inf for key in ("read4", "read8", "cached4"))
    best = read / wall
    found = {"best_bytes_per_s": best}
    print(f"  the disk alone: {best / 1e9:.2f} GB/s, reading only")
    for key in ("avops", "floor"):
        if seconds := bench.median(key):
            shares = read / seconds / best, (read + written) / seconds / best
            found[f"{key}_read_share"], found[f"{key}_moved_share"] = shares
            print(f"  {key}: {shares[0]:.0%} of that read, {shares[1]:.0%} read and written")
    return found


def _other_rows(job: Job, args: argparse.Namespace) -> list[Row]:
    rows = []
    if peers.version(sys.executable, "torch"):
        loops = peers.torch_loops(job)
        rows += loops[1:2] if args.cold else loops
    else:
        print("no torch here: no torch loops")
    python = args.mergekit or sys.executable
    if peers.version(python, "mergekit"):
        rows += peers.mergekit(job, python)[1:2] if args.cold else peers.mergekit(job, python)
    else:
        print("no mergekit here: name a Python that has it with --mergekit")
    return [*rows, peers.copy(job)]


def save(part: str, figures: Any, mergekit: str | None) -> None:
    """Replace one part of the results, with where it came from."""
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    found = {key: value for key, value in found.items() if key in PARTS}
    origin = machine()
    if mergekit:
        origin["versions"]["mergekit"] = peers.version(mergekit, "mergekit")
    found[part] = {**origin, **figures}
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")


PARTS = ("warm", "cold", "scale", "memory", "lora")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mib", type=int, default=2048, help="size of the base")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--mergekit", metavar="PYTHON", help="a Python that imports mergekit")
    parser.add_argument("--dir", type=Path, help="where the models go (default: a temporary one)")
    parser.add_argument("--save", action="store_true")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--cold", action="store_true")
    kind.add_argument("--scale", action="store_true")
    kind.add_argument("--memory", type=int, nargs="?", const=0, metavar="GIB")
    kind.add_argument("--lora", type=int, nargs="*", metavar="N")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    # A killed benchmark must not leave gigabytes behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="avops-bench-", dir=args.dir) as name:
        directory = Path(os.path.realpath(name))
        if args.memory is not None:
            part, figures = "memory", memory.measure(directory, args.memory)
        elif args.lora is not None:
            counts = args.lora or (1, 3)
            figures = lora.measure(directory, args.mib, args.runs, counts, SLOW_RUNS)
            part = "lora"
        elif args.scale:
            part, figures = "scale", scale.measure(directory, args.runs)
        else:
            part = "cold" if args.cold else "warm"
            figures = compare_processes(directory, args)
    if args.save:
        save(part, figures, args.mergekit)


if __name__ == "__main__":
    main()
