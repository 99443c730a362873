"""How many measurements each strategy needs, replayed on whole grids of the small world.

    python -m bench.search --cache DIRECTORY [--seeds 11 12 13] [--runs 10] [--json FILE]
    python -m bench.search --report FILE [--figure docs/search.png]

The grids are those of ``bench.truths``. A run is one strategy with one seed on one world; it ends
when the strategy does, or at its budget. Counted: measurements until every reachable combination
was measured as a hit. Worlds are replayed in turn; what is done is kept in the cache.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from avops.search.board import Board, Part
from avops.search.strategies.active import Active
from avops.search.strategies.registry import make_strategy
from bench import search_figure
from bench.report import machine, table
from bench.truths import ITEMS, RANGE, SEEDS, Grid, held_out, load

# Name: (strategy, options, points asked for at a time, budget, share of the runs).
KINDS: dict[str, tuple[str, dict[str, Any], int, int, float]] = {
    "active": ("active", {}, 1, 400, 1.0),
    "active, margins left alone": ("active", {"polish": 0.0}, 1, 400, 1.0),
    "active, 8 at a time": ("active", {}, 8, 400, 0.5),
    "active, 32 at a time": ("active", {}, 32, 400, 0.5),
    "refine": ("refine", {}, 8, 1728, 0.2),
    "grid:best": ("grid:best", {}, 8, 1728, 0.1),
    "random": ("optuna:random", {}, 108, 1728, 0.5),
    "optuna:tpe": ("optuna:tpe", {}, 8, 300, 0.2),
    "optuna:cmaes": ("optuna:cmaes", {}, 8, 500, 0.2),
}


def replay(grid: Grid, kind: str, seed: int) -> dict[str, Any]:
    """One run: found combinations after each measurement, and how it ended."""
    name, options, batch, budget, _ = KINDS[kind]
    strategy = make_strategy(name, grid.problem(seed), **options)
    budget = min(budget, len(grid.space))
    hit, margin = grid.judged
    points: list[Any] = []
    why, notes, longest = "", set(), 0.0
    began = time.process_time()
    while len(points) < budget:
        step = time.process_time()
        asked = strategy.ask(grid.told(points), min(batch, budget - len(points)))
        longest = max(longest, time.process_time() - step)
        notes |= {asked.note} - {""}
        if not asked.points:
            why = asked.why_done
            break
        points += asked.points
    rows = [grid.space.row(point) for point in points]
    found = np.logical_or.accumulate(hit[rows], axis=0)
    curve = found.sum(axis=1).tolist()
    whole = int(grid.reachable.sum())
    reached = found[-1]
    best = np.where(hit, margin, -np.inf)
    share = best[rows].max(axis=0)[reached] / best.max(axis=0)[reached]
    run: dict[str, Any] = {
        "world": grid.seed,
        "kind": kind,
        "seed": seed,
        "all_at": curve.index(whole) + 1 if curve[-1] == whole else None,
        "measured": len(points),
        "found": curve[-1],
        "reachable": whole,
        "curve": curve,
        "why": why,
        "notes": sorted(notes),
        "margin_share": float(share.mean()),
        "seconds_per_ask": (time.process_time() - began) * batch / max(1, len(points)),
        "longest_ask": longest,
    }
    outlook = strategy.outlook(grid.told(points)) if len(points) < len(grid.space) else None
    if outlook is not None:
        truth = grid.board.labels(grid.scores)
        rest = np.setdiff1d(np.arange(len(truth)), rows)
        run["labels_right"] = float((outlook.labels[rest] == truth[rest]).mean())
        run["points_right"] = float((outlook.labels[rest] == truth[rest]).all(axis=1).mean())
        run["chance"] = {
            str(want): round(chance, 4)
            for want, chance in outlook.chance.items()
            if not reached[grid.wants.index(want)]
        }
    return run


def map_quality(grid: Grid, seed: int) -> list[dict[str, Any]]:
    """The model's map after a number of the active strategy's points."""
    strategy = Active(grid.problem(seed))
    truth, points, rows = grid.board.labels(grid.scores), [], []
    for size in (30, 60, 100):
        while len(points) < size:
            asked = strategy.ask(grid.told(points), 1).points
            if not asked:
                return rows
            points += asked
        outlook = strategy.outlook(grid.told(points))
        assert outlook is not None
        rest = np.setdiff1d(np.arange(len(truth)), [grid.space.row(p) for p in points])
        right = outlook.labels[rest] == truth[rest]
        sure = outlook.sure[rest]
        rows.append({
            "world": grid.seed, "seed": seed, "points": size, "labels_right": float(right.mean()),
            "points_right": float(right.all(axis=1).mean()), "said": float(sure.mean()),
        })  # fmt: skip
    return rows


def pick_noise(grid: Grid, cache: Path) -> list[dict[str, Any]]:
    """The best point of each reachable combination on the search items, on items never seen."""
    scores, items = held_out(grid.seed, cache)
    hit, margin = grid.judged
    found = []
    whole = Board(Part.of(items))
    for size in (ITEMS, None):
        some = items.select(limit=size)
        kept = np.array([entry in set(map(id, some.entries)) for entry in map(id, items.entries)])
        part = scores.reshape(len(scores), len(items), -1)[:, kept].reshape(len(scores), -1)
        board = Board(Part.of(some))
        held_hit, held_margin = board.judge(part, grid.wants)
        for column, want in enumerate(grid.wants):
            if not grid.reachable[column]:
                continue
            row = int(np.where(hit[:, column], margin[:, column], -np.inf).argmax())
            if np.isnan(scores[row, 0]):
                continue
            found.append({
                "world": grid.seed, "want": str(want), "items": len(some) // 3,
                "margin": float(margin[row, column]),
                "held_margin": float(held_margin[row, column]),
                "held": bool(held_hit[row, column]),
            })  # fmt: skip
    assert whole.outputs == scores.shape[1]
    return found


def world(seed: int, cache: Path, runs: int, until: float) -> dict[str, Any] | None:
    """Everything about one world; None where time ran out (what is done is kept)."""
    grid = load(seed, cache)
    file = cache / f"replays-{seed}.json"
    done = json.loads(file.read_text()) if file.exists() else {"runs": [], "maps": []}
    hit, _ = grid.judged
    owned = hit.sum(axis=0)
    done["world"] = {
        "seed": seed, "points": len(grid.space), "reachable": int(grid.reachable.sum()),
        "combinations": len(grid.wants), "rarest": sorted(owned[owned > 0].tolist())[:6],
    }  # fmt: skip
    have = {(run["kind"], run["seed"]) for run in done["runs"]}
    for kind, (*_, share) in KINDS.items():
        for number in range(max(1, round(share * runs))):
            if (kind, number) in have:
                continue
            done["runs"].append(replay(grid, kind, number))
            file.write_text(json.dumps(done))
            if time.monotonic() > until:
                return None
    if not done["maps"]:
        done["maps"] = [row for number in range(3) for row in map_quality(grid, number)]
    done["picks"] = pick_noise(grid, cache)
    file.write_text(json.dumps(done))
    return dict(done)


def summary(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per kind over all worlds: how often complete, and measurements until then."""
    found = []
    for kind in KINDS:
        mine = [run for run in runs if run["kind"] == kind]
        if not mine:
            continue
        at = sorted(run["all_at"] or float("inf") for run in mine)
        found.append({
            "kind": kind, "runs": len(mine),
            "complete": sum(x < float("inf") for x in at),
            "within_110": sum(x <= 110 for x in at),
            "median": _finite(statistics.median(at)), "least": _finite(at[0]),
            "most": _finite(at[-1]),
            "at_110": statistics.mean(r["curve"][min(109, len(r["curve"]) - 1)] / r["reachable"]
                                      for r in mine),
            "measured": statistics.median(run["measured"] for run in mine),
            "margin_share": statistics.mean(run["margin_share"] for run in mine),
            "seconds_per_ask": statistics.median(run["seconds_per_ask"] for run in mine),
        })  # fmt: skip
    return found


def _finite(value: float) -> float | None:
    return None if value == float("inf") else value


def show(result: dict[str, Any]) -> None:
    """Print the tables."""
    columns = ("strategy", "runs", "complete", "≤ 110", "median", "least", "most", "found at 110",
               "measured", "s/ask")  # fmt: skip
    rows = [
        [r["kind"], str(r["runs"]), str(r["complete"]), str(r["within_110"]),
         *("–" if r[k] is None else f"{r[k]:g}" for k in ("median", "least", "most")),
         f"{r['at_110']:.1%}", f"{r['measured']:g}", f"{r['seconds_per_ask']:.2f}"]
        for r in result["summary"]
    ]  # fmt: skip
    table("measurements until every reachable combination was hit", columns, rows)
    for key in ("worlds", "picks_summary", "maps_summary"):
        for row in result[key]:
            print(key, json.dumps(row))


def collect(cache: Path, seeds: list[int]) -> dict[str, Any]:
    """The result over all worlds."""
    parts = [json.loads((cache / f"replays-{seed}.json").read_text()) for seed in seeds]
    runs = [
        {**run, "curve": run["curve"][: search_figure.SPAN]}
        for part in parts
        for run in part["runs"]
    ]
    picks = [pick for part in parts for pick in part.get("picks", [])]
    maps = [row for part in parts for row in part["maps"]]
    picks_summary = [
        {"items": n, "winners": len(some), "still_hits": sum(p["held"] for p in some),
         "margin": statistics.mean(p["margin"] for p in some),
         "held_margin": statistics.mean(p["held_margin"] for p in some)}
        for n in sorted({p["items"] for p in picks})
        for some in [[p for p in picks if p["items"] == n]]
    ]  # fmt: skip
    maps_summary = [
        {"points": n, **{k: statistics.mean(m[k] for m in maps if m["points"] == n)
                         for k in ("labels_right", "points_right", "said")}}
        for n in sorted({m["points"] for m in maps})
    ]  # fmt: skip
    return {
        **machine(), "range": RANGE, "items_per_domain": ITEMS,
        "worlds": [part["world"] for part in parts], "summary": summary(runs),
        "picks_summary": picks_summary, "maps_summary": maps_summary, "runs": runs,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=1e9)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--report", type=Path)
    parser.add_argument("--figure", type=Path)
    args = parser.parse_args()
    if args.report:
        result = json.loads(args.report.read_text())
    else:
        until = time.monotonic() + args.seconds
        finished = [world(seed, args.cache, args.runs, until) for seed in args.seeds]
        if None in finished:
            return
        result = collect(args.cache, args.seeds)
        if args.json:
            args.json.write_text(json.dumps(result) + "\n")
        print("finished")
    show(result)
    if args.figure:
        search_figure.draw(result, args.figure)


if __name__ == "__main__":
    main()
