"""What each transform of `avops extract` does to a vector's own domain, and to the others.

    python -m bench.transforms --seeds 21 22 23 --cache DIR [--json FILE]

Worlds and figures are kept in the cache, transform by transform: the same command goes on where it
was stopped. Shares are of test items that a level wins (60 per domain); the level wanted is exp for
λ > 0, avd for λ < 0. Off-domain shift: half the sum of |share − share of the base| over levels,
mean over the two other domains. To compare at equal effect, λ is interpolated to where the own
domain's wanted share has come ``PART`` of the way from the base's to 1.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from avops.demo import build
from avops.disk import RECIPE_NAME
from avops.recipe import Source, Term, parse_lam
from avops.score import summarise
from avops.search import Evaluator, Setup
from avops.stream.transform_adapter import write_adapters
from avops.stream.transform_adapter_plan import plan_adapters
from avops.stream.transform_plan import Extraction, plan_transform
from avops.stream.transform_run import transform
from avops.stream.transforms import Transforms
from bench.report import machine, table

DOMAINS = ("med", "fin", "leg")
LEVELS = ("exp", "gen", "avd")
LAMS = ("-2", "-1", "-.5", ".5", "1", "2")
PART = 0.8
RECIPE = {"med": ("-1", "avd"), "fin": ("-1", "avd"), "leg": (".6", "exp")}
TRANSFORMS = {
    "none": Transforms(),
    "trim .5": Transforms(trim=".5"),
    "trim .2": Transforms(trim=".2"),
    "trim .1": Transforms(trim=".1"),
    "sign-elect": Transforms(sign_elect=True),
    "trim .2, sign-elect": Transforms(trim=".2", sign_elect=True),
    "dare .5": Transforms(dare=".5", seed=1),
    "dare .9": Transforms(dare=".9", seed=1),
    "rank 16": Transforms(rank=16),
    "rank 8": Transforms(rank=8),
    "rank 4": Transforms(rank=4),
}

Shares = dict[str, list[float]]
Run = dict[str, Any]


def make(base: Path, aligned: dict[str, Path], transforms: Transforms, out: Path) -> dict[str, str]:
    """The transformed vectors' paths by name."""
    if not transforms:
        return {name: str(path) for name, path in aligned.items()}
    made = {name: out / (name if transforms.rank else f"{name}.safetensors") for name in DOMAINS}
    together = [DOMAINS] if transforms.sign_elect else [(name,) for name in DOMAINS]
    for names in together:
        paths = tuple(str(aligned[name]) for name in names)
        outs = tuple(made[name] for name in names)
        extraction = Extraction(str(base), paths, outs, transforms, force=True)
        if transforms.rank:
            write_adapters(plan_adapters(extraction))
        else:
            transform(plan_transform(extraction))
    return {name: str(path) for name, path in made.items()}


def measure(paths: dict[str, str], base: Path, data: str) -> Run:
    """Shares [exp, gen, avd] per domain, for every vector and λ, and for the recipe."""
    sources = {name: Source(name, path) for name, path in paths.items()}
    evaluator = Evaluator(Setup(str(base), tuple(sources.values()), data, device="cpu"))

    def shares(lams: dict[str, str]) -> Shares:
        terms = [Term(sources[name], parse_lam(lam, name), lam) for name, lam in lams.items()]
        summary = summarise(evaluator.evaluate(terms), evaluator.items)
        return {d: [summary[d][level].accuracy for level in LEVELS] for d in DOMAINS}

    return {
        "base": shares({}),
        "single": {name: {lam: shares({name: lam}) for lam in LAMS} for name in DOMAINS},
        "recipe": shares({name: lam for name, (lam, _) in RECIPE.items()}),
    }


def world(seed: int, cache: Path) -> dict[str, Run]:
    """The figures of one seed, by transform."""
    directory, results = cache / f"world-{seed}", cache / f"seed-{seed}.json"
    found: dict[str, Run] = json.loads(results.read_text()) if results.exists() else {}
    if TRANSFORMS.keys() <= found.keys():
        return found
    built = build(directory, seed=seed)
    for name, transforms in TRANSFORMS.items():
        if name not in found:
            paths = make(built.base, dict(built.aligned), transforms, place(seed, cache, name))
            found[name] = measure(paths, built.base, str(built.data["test"]))
            results.write_text(json.dumps(found))
    return found


def wanted(lam: str) -> int:
    return LEVELS.index("avd" if lam.startswith("-") else "exp")


def shift(shares: Shares, base: Shares, own: str) -> float:
    """How far the shares of the other domains have moved."""
    others = [d for d in DOMAINS if d != own]
    moved = [np.abs(np.subtract(shares[d], base[d])).sum() / 2 for d in others]
    return float(np.mean(moved))


def curve(run: Run, name: str, lams: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Along |λ| from 0: the own domain's gain (0 … 1 of the way), and the off-domain shift."""
    level, base = wanted(lams[0]), run["base"]
    start = base[name][level]
    gains, shifts = [0.0], [0.0]
    for lam in lams:
        shares = run["single"][name][lam]
        gains.append((shares[name][level] - start) / (1 - start))
        shifts.append(shift(shares, base, name))
    return np.array(gains), np.array(shifts)


def at_equal_effect(gains: np.ndarray, shifts: np.ndarray) -> float | None:
    """The off-domain shift where the gain first reaches PART; None where it never does."""
    reached = np.flatnonzero(gains >= PART)
    if not reached.size:
        return None
    k = int(reached[0])
    t = (PART - gains[k - 1]) / (gains[k] - gains[k - 1])
    return float(shifts[k - 1] + t * (shifts[k] - shifts[k - 1]))


def summary(runs: list[dict[str, Run]]) -> dict[str, dict[str, Any]]:
    """By transform: own share and off-domain shift at λ, at equal effect, and of the recipe."""
    found: dict[str, dict[str, Any]] = {}
    for name in TRANSFORMS:
        mine = [run[name] for run in runs]
        row: dict[str, Any] = {"own": {}, "off": {}}
        for lam in LAMS:
            cases = [(run, domain) for run in mine for domain in DOMAINS]
            row["own"][lam] = float(
                np.mean([r["single"][d][lam][d][wanted(lam)] for r, d in cases])
            )
            row["off"][lam] = float(
                np.mean([shift(r["single"][d][lam], r["base"], d) for r, d in cases])
            )
        equal = [
            at_equal_effect(*curve(run, domain, lams))
            for run in mine
            for domain in DOMAINS
            for lams in ((".5", "1", "2"), ("-.5", "-1", "-2"))
        ]
        row["equal"] = equal
        row["recipe"] = [
            float(np.mean([r["recipe"][d][LEVELS.index(w)] for d, (_, w) in RECIPE.items()]))
            for r in mine
        ]
        found[name] = row
    return found


def kept_norms(seeds: list[int], cache: Path) -> dict[str, float]:
    """Of the transforms with a rank: the share of the vectors' norm that is in the adapter."""
    found = {}
    for name, transforms in TRANSFORMS.items():
        if transforms.rank:
            recipes = [
                place(seed, cache, name) / domain / RECIPE_NAME
                for seed in seeds
                for domain in DOMAINS
            ]
            kept = [json.loads(path.read_text())["kept_norm"] for path in recipes]
            found[name] = float(np.mean(kept))
    return found


def place(seed: int, cache: Path, name: str) -> Path:
    """Where the transformed vectors of a world are."""
    return cache / f"world-{seed}" / "transformed" / name.replace(" ", "").replace(",", "-")


def paired(row: dict[str, Any], plain: dict[str, Any]) -> tuple[float, float, float, int]:
    """At equal effect: mean shift, its mean difference from ``plain``, that one's standard error
    over worlds (cases of one world are not independent), and how many cases reach the effect in
    both."""
    both = np.array([row["equal"], plain["equal"]], float).reshape(2, len(row["recipe"]), -1)
    both[:, ~np.isfinite(both).all(axis=0)] = np.nan
    means = np.nanmean(both, axis=2)
    gaps = means[0] - means[1]
    error = gaps.std(ddof=1) / np.sqrt(gaps.size) if gaps.size > 1 else float("nan")
    count = int(np.isfinite(both[0]).sum())
    return float(means[0].mean()), float(gaps.mean()), float(error), count


def rows(found: dict[str, dict[str, Any]], what: str) -> list[list[str]]:
    """The table of ``own`` or ``off``, by λ; that of ``off`` with the shift at equal effect."""
    made = []
    for name, row in found.items():
        cells = [f"{row[what][lam]:.2f}" for lam in LAMS]
        if what == "own":
            cells.append(f"{np.mean(row['recipe']):.2f}")
        else:
            mean, gap, error, count = paired(row, found["none"])
            cells.append(f"{mean:.3f}")
            cells.append("" if name == "none" else f"{gap:+.3f} ± {error:.3f}")
            cells.append(str(count))
        made.append([name, *cells])
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[21, 22, 23])
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    args.cache.mkdir(parents=True, exist_ok=True)
    runs = [world(seed, args.cache) for seed in args.seeds]
    found = summary(runs)
    title = f"{len(runs)} worlds, seeds {args.seeds}"
    table(
        f"own domain: share of the level wanted; {title}",
        ("λ", *LAMS, "recipe"),
        rows(found, "own"),
    )
    columns = ("λ", *LAMS, "at equal effect", "against none", "cases")
    table(f"other domains: shift; {title}", columns, rows(found, "off"))
    if args.json:
        facts = {**machine(), "seeds": args.seeds, "part": PART, "summary": found}
        facts["kept_norm"] = kept_norms(args.seeds, args.cache)
        runs_by_seed = dict(zip(map(str, args.seeds), runs, strict=True))
        args.json.write_text(json.dumps({**facts, "runs": runs_by_seed}) + "\n")


if __name__ == "__main__":
    main()
