"""logprob and head_logprob on the CPU against torch's log_softmax over full logits, in alternation.

    python -m bench.logprob [--rows 256] [--vocabulary 32000] [--dim 1024] [--runs 5] [--json FILE]

Work: log P of one target for each row of hidden states under a head, in f32 and bf16; and of logits
that are there already. Contenders: avops with one and with two threads; torch with the same, f32
logits from a head widened to f32 (`exact`, as exact as avops), and for bf16 from logits in bf16
(`rounded`, another result: its error is shown). Rows a second are medians of the runs with half of
the range in percent; the largest error is against f64. No figure is printed unless avops keeps the
bound of its contract, gives the same bits for any thread count, and is never above 0.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from avops.kernels import LogitRule, LogProb, logprob
from avops.kernels.head_logprob import native as head_native
from avops.kernels.logprob import native
from avops.kernels.logprob.cases import bound, logit_error
from bench.report import machine, table

Call = Callable[[], torch.Tensor]


def picked(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return torch.log_softmax(logits, -1).gather(1, targets[:, None])[:, 0]


def with_threads(threads: int, call: Call) -> Call:
    def run() -> torch.Tensor:
        torch.set_num_threads(threads)
        return call()

    return run


class Work:
    """One case: its contenders, its exact log-probs, and how far ours may be from them."""

    def __init__(self, logits: torch.Tensor, targets: torch.Tensor, roundings: int) -> None:
        """logits: f64, exact."""
        self.exact = picked(logits, targets).numpy()
        self.vocabulary, self.roundings, self.logits = logits.shape[1], roundings, 0.0
        self.calls: dict[str, Call] = {}

    def add_torch(self, name: str, call: Call) -> None:
        for threads in (1, 2):
            self.calls[f"{name} {threads}"] = with_threads(threads, call)

    def errors(self, name: str) -> dict[str, float]:
        """The largest error of each contender; exits when ours is wrong."""
        found = {who: call().numpy() for who, call in self.calls.items()}
        for who in ("avops 1", "avops 2"):
            allowed = bound(found[who], self.vocabulary, self.roundings, logits=self.logits)
            wrong = (np.abs(found[who] - self.exact) > allowed).any() or (found[who] > 0).any()
            if wrong or not np.array_equal(found[who], found["avops 1"]):
                sys.exit(f"{name}: {who} is wrong; no figures")
        return {who: float(np.abs(x - self.exact).max()) for who, x in found.items()}


def rows_work(rows: int, vocabulary: int) -> Work:
    logits, targets = torch.randn(rows, vocabulary) * 3, torch.randint(0, vocabulary, (rows,))
    work = Work(logits.double(), targets, native.ROUNDINGS)
    for threads in (1, 2):
        work.calls[f"avops {threads}"] = lambda threads=threads: logprob(
            logits, targets, threads=threads, backend="native"
        )
    work.add_torch("exact", lambda: picked(logits, targets))
    return work


def head_work(rows: int, vocabulary: int, dim: int, dtype: torch.dtype) -> Work:
    hidden = torch.randn(rows, dim).to(dtype)
    weight = (torch.randn(vocabulary, dim) * (3 / dim**0.5)).to(dtype)
    targets = torch.randint(0, vocabulary, (rows,))
    work = Work(hidden.double() @ weight.double().T, targets, head_native.ROUNDINGS)
    size = (hidden.double().abs() @ weight.double().abs().T).numpy()
    work.logits = logit_error(size, dim, LogitRule())
    for threads in (1, 2):
        head = LogProb(weight, threads=threads, backend="native")
        work.calls[f"avops {threads}"] = lambda head=head: head(hidden, targets)
    work.add_torch("exact", lambda: picked(hidden.float() @ weight.float().T, targets))
    if dtype != torch.float32:
        work.add_torch("rounded", lambda: picked((hidden @ weight.T).float(), targets))
    return work


def measure(name: str, work: Work, rows: int, runs: int) -> dict[str, Any]:
    errors = work.errors(name)
    rates: dict[str, list[float]] = {who: [] for who in work.calls}
    for _ in range(runs):
        for who, call in work.calls.items():
            call()  # the last contender's threads may spin on for a while
            start = time.perf_counter()
            call()
            rates[who].append(round(rows / (time.perf_counter() - start), 1))
    return {"case": name, "rows": rows, "errors": errors, "rates": rates}


def cell(rates: list[float] | None) -> str:
    if rates is None:
        return "–"
    middle = statistics.median(rates)
    return f"{middle:,.0f} ±{50 * (max(rates) - min(rates)) / middle:.0f}%"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.manual_seed(0)
    shape = (args.rows, args.vocabulary)
    found = [measure("logits that are there", rows_work(*shape), args.rows, args.runs)]
    for dtype in (torch.float32, torch.bfloat16):
        name = f"head in {str(dtype).rpartition('.')[2]}"
        found.append(measure(name, head_work(*shape, args.dim, dtype), args.rows, args.runs))
    columns = [f"{who} {n}" for who in ("avops", "exact", "rounded") for n in (1, 2)]
    title = f"rows/s, median of {args.runs} ± half the range; {args.rows:,} rows, vocabulary "
    cells = [[row["case"], *(cell(row["rates"].get(who)) for who in columns)] for row in found]
    table(f"{title}{args.vocabulary:,}, dim {args.dim:,}", ("case", *columns), cells)
    for row in found:
        print(f"largest errors, {row['case']}: ", end="")
        print(", ".join(f"{who} {row['errors'][who]:.1e}" for who in row["errors"]))
    if args.json:
        sizes = {"vocabulary": args.vocabulary, "dim": args.dim}
        args.json.write_text(json.dumps({**machine(), **sizes, "rows": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
