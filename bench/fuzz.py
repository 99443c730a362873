"""Untrusted files, near validity, against the safetensors package and a plain reading of indexes.

    python -m bench.fuzz [--inputs 100000] [--seed 0 ...] [--jobs 2] [--kind both] [--json FILE]
    python -m bench.fuzz --check FILE...

Every input is opened by avops and by the other. Whatever avops alone accepts, whatever both accept
and read differently, every exception that is no CheckpointError, every crash and every input that
takes longer than --limit seconds is a failure: it is made smaller and kept in --failures. What only
the other accepts is our strictness, counted by reason. Input I of seed S is the same everywhere.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.fuzzing.outcome import BOTH, FAILURE, NEITHER, STRICTER, Outcome
from bench.fuzzing.workers import KINDS, Checker, Failure, Job, place, run
from bench.report import machine, table

# Fewer accepted inputs than this share, and the fuzzer tests refusals only.
HEALTHY = 0.2
OTHER = {"headers": "the safetensors package", "indexes": "a plain reading"}


def progress(done: int, total: int) -> None:
    if sys.stderr.isatty():
        print(f"\r{done:,} of {total:,} inputs", end="", file=sys.stderr, flush=True)


def keep(failure: Failure, job: Job, directory: Path) -> Path:
    """Save the failing input."""
    directory.mkdir(parents=True, exist_ok=True)
    suffix = KINDS[job.kind].SUFFIX
    path = directory / f"{job.kind}-{job.seed}-{failure.number}{suffix}"
    path.write_bytes(failure.raw)
    return path


def reasons(tally: Counter[Outcome], verdict: str) -> dict[str, int]:
    """How often each reason, the most frequent first."""
    return {outcome.reason: n for outcome, n in tally.most_common() if outcome.verdict == verdict}


def summary(job: Job, tally: Counter[Outcome], seconds: float) -> dict[str, Any]:
    total = tally.total()
    verdicts = {v: sum(reasons(tally, v).values()) for v in (BOTH, NEITHER, STRICTER, FAILURE)}
    return {
        "kind": job.kind,
        "seed": job.seed,
        "inputs": total,
        "seconds": round(seconds, 1),
        "inputs_per_s": round(total / seconds),
        "verdicts": verdicts,
        "strictness": reasons(tally, STRICTER),
        "refusals": reasons(tally, NEITHER),
        "failures": reasons(tally, FAILURE),
    }


def show(data: dict[str, Any]) -> None:
    total = data["inputs"]
    other = OTHER[data["kind"]]
    title = (
        f"{data['kind']} against {other}: {total:,} inputs, seed {data['seed']}, "
        f"{data['inputs_per_s']:,}/s"
    )
    rows = [[v, f"{n:,}", f"{n / max(total, 1):.1%}"] for v, n in data["verdicts"].items()]
    table(title, ("verdict", "inputs", "share"), rows)
    rows = [[why[:90], f"{n:,}"] for why, n in data["strictness"].items()]
    if rows:
        table(f"accepted by {other} alone: why avops refuses", ("reason", "inputs"), rows)
    print(f"refused by both, for {len(data['refusals'])} reasons\n")


def fuzz(job: Job, jobs: int, failures_to: Path) -> dict[str, Any]:
    """Run one kind of inputs, print its tables, and keep the failures."""
    start = time.perf_counter()
    tally, failures = run(job, jobs, lambda done: progress(done, job.stop))
    data = summary(job, tally, time.perf_counter() - start)
    # A run that ends early has failures whose outcomes were not counted yet.
    for reason, count in Counter(failure.reason for failure in failures).items():
        data["failures"][reason] = max(count, data["failures"].get(reason, 0))
    show(data)
    for failure in failures:
        path = keep(failure, job, failures_to)
        print(f"FAILURE {job.kind} input {failure.number}: {failure.reason}: {path}")
        print(f"    {failure.raw[:300]!r}")
    if failures:
        print(f"{len(failures)} failures kept; a run ends early when it has found enough")
    elif data["verdicts"][BOTH] < HEALTHY * data["inputs"]:
        print(f"only {data['verdicts'][BOTH]} inputs accepted: the generator is not near validity")
        data["failures"]["too few accepted"] = 1
    return data


def check(paths: list[Path], subject: str) -> bool:
    """Print what comes of saved inputs; whether none failed."""
    good = True
    for path in paths:
        kind = next(k for k, v in KINDS.items() if path.name.endswith(v.SUFFIX))
        with place(kind) as directory:
            outcome = Checker(Job(kind, 0, 0, 0, subject=subject), directory)(path.read_bytes())
        print(f"{path}: {outcome.verdict}: {outcome.reason}")
        good &= outcome.verdict != FAILURE
    return good


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inputs", type=int, default=100_000, help="of each kind")
    parser.add_argument("--seed", type=int, nargs="+", default=[0], help="one run for each")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--kind", choices=[*KINDS, "both"], default="both")
    parser.add_argument("--limit", type=float, default=2.0, help="seconds for one input")
    parser.add_argument("--shrink", type=float, default=20.0, help="seconds to make one smaller")
    parser.add_argument("--failures", type=Path, default=Path("fuzz-failures"))
    parser.add_argument("--subject", default="", help="MODULE:FUNCTION to test in avops's place")
    parser.add_argument("--check", type=Path, nargs="+", metavar="FILE", help="saved inputs")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.check:
        sys.exit(0 if check(args.check, args.subject) else 1)
    job = Job("", 0, 0, args.inputs, 1, args.limit, args.shrink, args.subject)
    kinds = KINDS if args.kind == "both" else [args.kind]
    runs = [
        fuzz(replace(job, kind=kind, seed=seed), args.jobs, args.failures)
        for seed in args.seed
        for kind in kinds
    ]
    if args.json:
        args.json.write_text(json.dumps({**machine(), "runs": runs}, indent=2) + "\n")
    sys.exit(1 if any(data["failures"] for data in runs) else 0)


if __name__ == "__main__":
    main()
