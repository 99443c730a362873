"""combine, diff and lowrank: native, reference, a torch f32 chain and copying, in alternation.

    python -m bench.kernels [--elements 16777216] [--runs 7] [--json FILE]

Work: the TYPICAL cases of each operation, once from memory (--elements a tensor) and once on chunks
as merges use them (524,288 elements, the same ones again and again, so in cache). GB/s counts
every input read once and the output written once, for every contender alike; `copy` moves the same
number of bytes, half read and half written, with numpy. lowrank counts a product and a sum for each
element and rank, in GFLOP/s; torch multiplies the same matrices with its BLAS, in another order.
Contenders take turns within a run; figures are medians of the runs, with half of the range in
percent. No figure is printed unless native equals the reference, bit for bit and count for count.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from avops.dtypes import BF16, F32, DType
from avops.kernels import Dither, Operand, combine, diff, dither_key, lowrank, registry
from avops.kernels.combine import cases as combine_cases
from avops.kernels.diff import cases as diff_cases
from avops.kernels.lowrank import cases as lowrank_cases
from bench.report import machine, table

CHUNK = 1 << 19
# The case that is measured with dithered rounding too.
DITHERED = "bf16 + 3 bf16 aligned"
DITHER = Dither(dither_key(0, "a weight"), 0)
# A measurement lasts at least this long, in seconds, by repeating short calls.
SHORTEST = 0.02
CONTENDERS = ("native 1", "native 2", "reference", "torch 1", "torch 2", "copy")

Call = Callable[[], object]


def as_torch(operand: Operand) -> torch.Tensor:
    """The same memory as a torch tensor."""
    if operand.dtype == BF16:
        return torch.from_numpy(operand.array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(operand.array)


def empty(n: int, dtype: DType) -> Operand:
    return Operand(np.zeros(n, dtype.storage), dtype)


def bits(operand: Operand) -> np.ndarray:
    return operand.array.view(f"u{operand.dtype.size}")


class Work:
    """One operation on one case: a call for some of the contenders, and what it is counted by.

    amount: bytes that it moves, or operations that it does.
    """

    unit = "GB/s"

    def __init__(self, inputs: Sequence[Operand], n: int, out: DType) -> None:
        self.outs = {name: empty(n, out) for name in CONTENDERS if name != "copy"}
        self.amount = sum(x.array.nbytes for x in inputs) + self.outs["native 1"].array.nbytes
        half = np.zeros(self.amount // 2, np.uint8)
        target = np.zeros_like(half)
        self.calls: dict[str, Call] = {"copy": lambda: np.copyto(target, half)}

    def add_torch(self, chain: Callable[[torch.Tensor], object]) -> None:
        """``chain`` writes its argument; it runs with one and with two threads."""

        def run(threads: int) -> None:
            torch.set_num_threads(threads)
            chain(as_torch(self.outs[f"torch {threads}"]))

        self.calls["torch 1"] = lambda: run(1)
        self.calls["torch 2"] = lambda: run(2)

    def check(self, name: str) -> float | None:
        """The share of torch's elements that differ, if it runs; exits when native's do."""
        stats = {who: call() for who, call in self.calls.items()}
        reference = self.outs["reference"]
        for who in ("native 1", "native 2"):
            same = np.array_equal(bits(self.outs[who]), bits(reference))
            if not same or stats[who] != stats["reference"]:
                sys.exit(f"{name}: {who} differs from the reference; no figures")
        if "torch 2" not in self.calls:
            return None
        return float(np.mean(bits(self.outs["torch 2"]) != bits(reference)))


class CombineWork(Work):
    def __init__(self, case: combine_cases.Case, rounding: Dither | None = None) -> None:
        base, terms = case.inputs()
        super().__init__([base, *(term.values for term in terms)], case.n, case.out)
        native = registry.resolve("combine", "native")
        outs = self.outs
        self.calls["native 1"] = lambda: combine(
            base, terms, outs["native 1"], rounding=rounding, backend=native
        )
        self.calls["native 2"] = lambda: combine(
            base, terms, outs["native 2"], rounding=rounding, backend=native, threads=2
        )
        self.calls["reference"] = lambda: combine(
            base, terms, outs["reference"], rounding=rounding, backend="reference"
        )
        if rounding is not None:
            return  # torch has nothing that does it
        theirs = [(as_torch(t.values), t.lam, t.aligned) for t in terms]
        origin = as_torch(base)

        def chain(target: torch.Tensor) -> None:
            wide = origin.float()
            acc = None
            for values, lam, aligned in theirs:
                delta = values.float() - wide if aligned else values.float()
                acc = lam * delta if acc is None else acc + lam * delta
            target.copy_(wide + acc)

        self.add_torch(chain)


class DiffWork(Work):
    def __init__(self, case: diff_cases.Case) -> None:
        base, aligned = case.inputs()
        super().__init__([base, aligned], case.n, case.out)
        native = registry.resolve("diff", "native")
        outs = self.outs
        self.calls["native 1"] = lambda: diff(base, aligned, outs["native 1"], backend=native)
        self.calls["native 2"] = lambda: diff(
            base, aligned, outs["native 2"], backend=native, threads=2
        )
        self.calls["reference"] = lambda: diff(
            base, aligned, outs["reference"], backend="reference"
        )
        origin, theirs = as_torch(base), as_torch(aligned)
        self.add_torch(lambda target: target.copy_(theirs.float() - origin.float()))


class LowRankWork(Work):
    unit = "GFLOP/s"

    def __init__(self, case: lowrank_cases.Case) -> None:
        super().__init__([], case.n, F32)
        del self.calls["copy"]
        self.amount = 2 * case.n * case.rank
        given = case.factors()
        native = registry.resolve("lowrank", "native")
        outs = self.outs
        self.calls["native 1"] = lambda: lowrank(
            given, case.start, outs["native 1"], backend=native
        )
        self.calls["native 2"] = lambda: lowrank(
            given, case.start, outs["native 2"], backend=native, threads=2
        )
        self.calls["reference"] = lambda: lowrank(
            given, case.start, outs["reference"], backend="reference"
        )
        rows, columns = case.n // case.columns, case.columns
        left, right = torch.from_numpy(given.left[:rows]), torch.from_numpy(given.right)

        def product(target: torch.Tensor) -> None:
            torch.mm(left, right, out=target.view(rows, columns)).mul_(given.scale)

        self.add_torch(product)


def seconds(call: Call) -> float:
    """Seconds per call, over as many calls as make the measurement long enough."""
    count, start = 0, time.perf_counter()
    while True:
        call()
        count += 1
        passed = time.perf_counter() - start
        if passed >= SHORTEST:
            return passed / count


def measure(name: str, work: Work, runs: int) -> dict[str, Any]:
    """GB/s or GFLOP/s of every contender in every run, contenders taking turns."""
    differs = work.check(name)
    here = [who for who in CONTENDERS if who in work.calls]
    rates: dict[str, list[float]] = {who: [] for who in here}
    for _ in range(runs):
        for who in here:
            rates[who].append(round(work.amount / seconds(work.calls[who]) / 1e9, 2))
    row: dict[str, Any] = {"case": name, "unit": work.unit, "amount": work.amount}
    return {**row, "torch_differs": differs, "rates": rates}


def overhead() -> float:
    """Microseconds of a call with three terms on 16 elements: all of it is overhead."""
    base, terms = combine_cases.Case(16, BF16, BF16, ((BF16, True),) * 3).inputs()
    out = empty(16, BF16)
    return 1e6 * min(seconds(lambda: combine(base, terms, out)) for _ in range(20))


def works(elements: int) -> list[tuple[str, Callable[[], Work]]]:
    made: list[tuple[str, Callable[[], Work]]] = []
    for n, where in ((elements, "memory"), (CHUNK, "chunk")):
        for name, (base, out, kinds) in combine_cases.TYPICAL.items():
            combined = combine_cases.Case(n, base, out, kinds)
            made.append((f"{name}, {where}", lambda case=combined: CombineWork(case)))
        base, out, kinds = combine_cases.TYPICAL[DITHERED]
        dithered = combine_cases.Case(n, base, out, kinds)
        made.append((f"{DITHERED}, dither, {where}",
                     lambda case=dithered: CombineWork(case, DITHER)))  # fmt: skip
        for name, (base, aligned, out) in diff_cases.TYPICAL.items():
            differing = diff_cases.Case(n, base, aligned, out)
            made.append((f"{name}, {where}", lambda case=differing: DiffWork(case)))
    for name, product in lowrank_cases.TYPICAL.items():
        made.append((name, lambda case=product: LowRankWork(case)))
    return made


def cell(rates: list[float] | None) -> str:
    if rates is None:
        return "–"
    middle = statistics.median(rates)
    return f"{middle:.1f} ±{50 * (max(rates) - min(rates)) / middle:.0f}%"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--elements", type=int, default=1 << 24, help="a tensor, from memory")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = [measure(name, make(), args.runs) for name, make in works(args.elements)]
    per_call = overhead()
    for unit in (Work.unit, LowRankWork.unit):
        cells = [
            [r["case"], *(cell(r["rates"].get(who)) for who in CONTENDERS)]
            for r in rows
            if r["unit"] == unit
        ]
        title = f"{unit}, median of {args.runs} ± half the range"
        if unit == Work.unit:
            title += f"; from memory: {args.elements:,} elements"
        table(title, ("case", *CONTENDERS), cells)
    print("native equals the reference in every case; share of elements where torch differs:")
    print(", ".join(f"{r['case']} {r['torch_differs']:.1e}" for r in rows if r["torch_differs"])
          or "none")  # fmt: skip
    print(f"a call of combine with three terms costs {per_call:.1f} µs besides its elements")
    if args.json:
        data = {"elements": args.elements, "call_us": round(per_call, 2), "rows": rows}
        args.json.write_text(json.dumps({**machine(), **data}, indent=2) + "\n")


if __name__ == "__main__":
    main()
