"""The demo's small world over several seeds: what a vector does in its own domain and elsewhere.

    python -m bench.world [--seeds 1 2 3 4 5] [--json FILE]

Every figure is the share of test items a level wins (60 per domain). The recipe was calibrated on
validation items of seeds 101 to 108; the seeds here had no part in that.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from avops.demo import build
from avops.recipe import Source, Term, parse_lam
from avops.score import summarise
from avops.search import Evaluator, Setup
from bench.report import machine, table

DOMAINS = ("med", "fin", "leg")
LEVELS = ("exp", "gen", "avd")
LAMS = ("-1.5", "-1.2", "-1", "-.5", "-.2", "0", ".5", "1")
RECIPE = {"med": "-1", "fin": "-1", "leg": ".6"}

Shares = dict[str, list[float]]


def measure(seed: int, directory: Path) -> dict[str, Any]:
    """Shares [exp, gen, avd] per scored domain, for every AV and λ, and for the recipe."""
    world = build(directory, seed=seed)
    sources = {name: Source(name, str(path)) for name, path in world.aligned.items()}
    test = str(world.data["test"])
    evaluator = Evaluator(Setup(str(world.base), tuple(sources.values()), test, device="cpu"))

    def shares(lams: dict[str, str]) -> Shares:
        terms = [Term(sources[name], parse_lam(lam, name), lam) for name, lam in lams.items()]
        summary = summarise(evaluator.evaluate(terms), evaluator.items)
        return {d: [summary[d][level].accuracy for level in LEVELS] for d in DOMAINS}

    sweeps = {name: {lam: shares({name: lam}) for lam in LAMS} for name in DOMAINS}
    return {"seed": seed, "sweeps": sweeps, "recipe": shares(RECIPE)}


def pooled(runs: list[dict[str, Any]], lam: str, *, own: bool) -> np.ndarray:
    """[case, level] over seeds, AVs and domains: a vector's own domain, or the others."""
    cases = [
        run["sweeps"][name][lam][domain]
        for run in runs
        for name in DOMAINS
        for domain in DOMAINS
        if (name == domain) == own
    ]
    return np.array(cases)


def rows(runs: list[dict[str, Any]], *, own: bool) -> list[list[str]]:
    found = []
    for lam in LAMS:
        cases = pooled(runs, lam, own=own)
        best = np.array([(row == row.max()) & (row > 1 / 3) for row in cases])
        single = best & (best.sum(1, keepdims=True) == 1)
        cells = [
            f"{mean:.2f} [{low:.2f}, {high:.2f}]"
            for mean, low, high in zip(cases.mean(0), cases.min(0), cases.max(0), strict=True)
        ]
        counts = " ".join(f"{n} {x}" for n, x in zip(single.sum(0), LEVELS, strict=True) if n)
        found.append([lam, *cells, counts])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    runs = []
    with tempfile.TemporaryDirectory() as directory:
        for seed in args.seeds:
            runs.append(measure(seed, Path(directory) / str(seed)))
            print(f"seed {seed}: {json.dumps(runs[-1]['recipe'])}", flush=True)
    columns = ("λ", *(f"{level} mean [min, max]" for level in LEVELS), "dominant")
    for own, title in ((True, "own domain"), (False, "other domains")):
        count = len(pooled(runs, "0", own=own))
        table(f"{title}: {count} cases, seeds {args.seeds}", columns, rows(runs, own=own))
    if args.json:
        args.json.write_text(json.dumps({**machine(), "runs": runs}) + "\n")


if __name__ == "__main__":
    main()
