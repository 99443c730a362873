"""A search's running costs on the small world: pace, where the time goes, memory, and a peer's way.

    python -m bench.search_run [--world DIR] [--python PY] [--evaluations N] [--json FILE]

search: `active` and `grid` on one worker in this process; the share of the time in which the worker
scored, and what of the planner's time was not hidden behind it. memory: resident bytes while
candidates are measured one after another on one live model. peer: mergekit-evolve's way, a whole
checkpoint written and a fresh process that loads and scores it (fresh_process), or one that stays
and loads it anew (fresh_model), for the same points. With --python
(one that has mergekit) mergekit writes the checkpoints, in one process that stays; otherwise avops
does. Their scores must be those of the live model: same winners of every item, or nothing is
printed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from avops.demo import build
from avops.recipe import Recipe, Source, Sources
from avops.search import Evaluator, Setup
from avops.search.budget import Budget
from avops.search.fanout.crew import Crew
from avops.search.fanout.local import LocalWorker
from avops.search.points import Job, PointEvaluator, PointSetup
from avops.search.runner import Search
from avops.search.space import parse_space
from avops.search.store import Store
from avops.search.strategies.registry import make_strategy
from avops.search.study import Study
from avops.stream import MergeOptions, merge, plan_merge
from bench.report import machine, table

NAMES = ("med", "fin", "leg")
SPEC = [f"{name}:-1.2:1.2:.1" for name in NAMES]
PEER = """
import json, sys, time, warnings
warnings.simplefilter("ignore")
import yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
options = MergeOptions(copy_tokenizer=False, write_model_card=False, quiet=True)
print("ready", flush=True)
for line in sys.stdin:
    text, out = json.loads(line)
    begin = time.perf_counter()
    run_merge(MergeConfiguration.model_validate(yaml.safe_load(text)), out, options)
    print(json.dumps(time.perf_counter() - begin), flush=True)
"""


class Silent:
    """Tells nobody."""

    def progress(self, _now: Any) -> None: ...
    def note(self, text: str) -> None:
        print("note:", text, file=sys.stderr)


def evaluator_of(world: Path) -> tuple[PointEvaluator, Any]:
    sources = {name: Source(name, str(world / f"aligned/{name}.safetensors")) for name in NAMES}
    setup = Setup(
        str(world / "base.safetensors"),
        tuple(sources.values()),
        str(world / "data/test.jsonl"),
        levels=("exp", "gen", "avd"),
        device="cpu",
    )
    return PointEvaluator(PointSetup(setup, (), ".5")), parse_space(SPEC, Sources(sources))


def search(
    evaluator: PointEvaluator, space: Any, strategy: str, batch: int, count: int
) -> dict[str, Any]:
    """One search of ``count`` points from nothing."""
    board = evaluator.sets.board()
    study = Study(
        space, board, board.combinations(), evaluator.sets.holdout_board(), strategy, batch=batch
    )
    with (
        tempfile.TemporaryDirectory() as directory,
        Store.open(Path(directory) / "run", study, evaluator.identity(space)) as store,
        Crew([LocalWorker(evaluator)], evaluator.digest) as crew,
    ):
        chooser = make_strategy(strategy, study.problem)
        run = Search(store, chooser, crew, Budget(evaluations=count), Silent())
        why = run.run()
    clock = run.clock
    return {
        "strategy": strategy,
        "batch": batch,
        "evaluations": clock.evaluations,
        "found": run.found,
        "why": why,
        "seconds": clock.wall,
        "evaluations_per_second": clock.evaluations / clock.wall,
        "scoring_share": clock.scoring_share(1),
        "setting_share": clock.setting / clock.wall,
        "keeping_share": clock.keeping / clock.wall,
        "planner_seconds": clock.planner,
        "planner_not_hidden": clock.waited,
    }


def resident() -> int:
    """Bytes of this process in memory."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def memory(evaluator: PointEvaluator, space: Any, count: int) -> dict[str, Any]:
    """Resident bytes every tenth of ``count`` candidates, after twenty that warm up."""
    points = space.points[:: max(1, len(space) // (count + 20))]
    seen = []
    for number, point in enumerate(points[: count + 20]):
        if number >= 20 and (number - 20) % max(1, count // 10) == 0:
            seen.append(resident())
        evaluator.evaluate(Job(point, terms=space.terms(point)))
    seen.append(resident())
    return {"candidates": count, "resident": seen, "grown": seen[-1] - seen[0]}


def config(world: Path, terms: Any) -> str:
    models = [{"model": str(world / "as_directory/base")}]
    models += [
        {"model": str(world / f"as_directory/{t.name}"), "parameters": {"weight": float(t.text)}}
        for t in terms
    ]
    return json.dumps(
        {
            "merge_method": "task_arithmetic",
            "base_model": models[0]["model"],
            "models": models[1:],
            "parameters": {"normalize": False},
            "dtype": "float32",
        }
    )


def as_directories(world: Path) -> None:
    """The checkpoints as mergekit takes them: a directory each."""
    for name in ("base", *NAMES):
        directory = world / "as_directory" / name
        if directory.exists():
            continue
        directory.mkdir(parents=True)
        file = world / ("base.safetensors" if name == "base" else f"aligned/{name}.safetensors")
        shutil.copy(file, directory / "model.safetensors")
        for side in ("config.json", "tokenizer.json", "tokenizer_config.json"):
            shutil.copy(world / side, directory)


def peer(
    evaluator: PointEvaluator, space: Any, world: Path, points: list[Any], python: str | None
) -> dict[str, Any]:
    """A merge to disk and a fresh scoring process for each of ``points``, beside the live model."""
    merging, scoring, loading, live = [], [], [], []
    process = None
    as_directories(world)
    if python is not None:
        process = subprocess.Popen(
            [python, "-c", PEER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for point in points:
        terms = space.terms(point)
        with tempfile.TemporaryDirectory(dir=world) as scratch:
            out = Path(scratch) / "merged"
            begin = time.perf_counter()
            if process is not None:
                process.stdin.write(json.dumps([config(world, terms), str(out)]) + "\n")
                process.stdin.flush()
                json.loads(process.stdout.readline())
            else:
                recipe = Recipe(str(world / "as_directory/base"), terms)
                merge(plan_merge(recipe, out, MergeOptions()))
            merging.append(time.perf_counter() - begin)
            for side in ("config.json", "tokenizer.json", "tokenizer_config.json"):
                if not (out / side).exists():
                    shutil.copy(world / side, out)
            begin = time.perf_counter()
            subprocess.run(
                [
                    sys.executable, "-m", "avops", "score", str(out), "--device", "cpu",
                    "--data", str(world / "data/test.jsonl"), "--levels", "exp,gen,avd",
                    "--save", str(Path(scratch) / "s.npz"), "--json",
                ],
                check=True, capture_output=True,
            )  # fmt: skip
            scoring.append(time.perf_counter() - begin)
            check(evaluator, point, space, Path(scratch) / "s.npz")
            # Kinder to the peer: a process that stays, into which each checkpoint is loaded.
            begin = time.perf_counter()
            data = str(world / "data/test.jsonl")
            Evaluator(Setup(str(out), (), data, ("exp", "gen", "avd"), device="cpu")).evaluate()
            loading.append(time.perf_counter() - begin)
        begin = time.perf_counter()
        evaluator.evaluate(Job(point, terms=terms))
        evaluator.evaluate(Job(point, "holdout", terms))
        live.append(time.perf_counter() - begin)
    if process is not None:
        process.stdin.close()
        process.wait(timeout=30)
    fresh = [a + b for a, b in zip(merging, scoring, strict=True)]
    kept = [a + b for a, b in zip(merging, loading, strict=True)]
    return {
        "merged_by": "mergekit" if python else "avops",
        "points": len(points),
        "merge_seconds": merging,
        "fresh_process_seconds": scoring,
        "fresh_model_seconds": loading,
        "live_seconds": live,
        "ratio_fresh_process": statistics.median(fresh) / statistics.median(live),
        "ratio_fresh_model": statistics.median(kept) / statistics.median(live),
    }


def check(evaluator: PointEvaluator, point: Any, space: Any, path: Path) -> None:
    """The file's scores are the live model's, but for the order in which products are summed."""
    from avops.score import read_table

    found = read_table(path)
    lines = {item.line: row for row, item in enumerate(found.items)}
    for split, items in (("search", evaluator.sets.search), ("holdout", evaluator.sets.holdout)):
        own = evaluator.evaluate(Job(point, split, space.terms(point))).scores.reshape(-1, 3)
        rows = [lines[item.line] for item in items[0]]
        far = np.abs(found.scores[0][rows] - own).max()
        if far > 1e-3:  # nats: of another model, scores are tenths away
            raise SystemExit(f"{point}: the peer's scores are {far:.3g} nats from the live model's")


def show(result: dict[str, Any]) -> None:
    rows = [
        [
            run["strategy"],
            f"{run['batch']}",
            f"{run['evaluations']}",
            f"{run['evaluations_per_second']:.2f}",
            f"{run['scoring_share']:.1%}",
            f"{run['planner_seconds']:.1f}",
            f"{run['planner_not_hidden']:.1f}",
        ]
        for run in result["search"]
    ]
    heads = ["strategy", "batch", "points", "points/s", "scoring", "planner s", "not hidden s"]
    table("one worker, in this process", heads, rows)
    held = result["memory"]
    print(f"\nmemory over {held['candidates']} candidates: {held['grown'] / 1e6:+.2f} MB")
    own = result["peer"]
    print(f"\nfor each of {own['points']} points, medians; merged by {own['merged_by']}")
    for name in ("merge", "fresh_process", "fresh_model", "live"):
        print(f"  {name:14} {statistics.median(own[f'{name}_seconds']):.3f} s")
    print(
        f"  merge + fresh process: {own['ratio_fresh_process']:.1f} times the live model's; "
        f"merge + fresh model: {own['ratio_fresh_model']:.1f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--world", type=Path, help="of `avops demo --size small`")
    parser.add_argument("--python", help="with mergekit")
    parser.add_argument("--evaluations", type=int, default=100)
    parser.add_argument("--candidates", type=int, default=500)
    parser.add_argument("--points", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        world = Path(scratch) / "world"
        if args.world is None:
            build(world, seed=11, size="small")
        else:
            shutil.copytree(args.world, world)
        evaluator, space = evaluator_of(world)
        evaluator.load()
        evaluator.evaluate(Job((0, 0, 0), terms=space.terms((0, 0, 0))))
        result = {
            **machine(),
            "space": SPEC,
            "items": len(evaluator.sets.search[0]),
            "search": [
                search(evaluator, space, *kind, args.evaluations)
                for kind in (("active", 4), ("active", 8), ("grid", 8))
            ],
            "memory": memory(evaluator, space, args.candidates),
        }
        rng = np.random.default_rng(1)
        points = [space.points[row] for row in rng.integers(len(space), size=args.points)]
        result["peer"] = peer(evaluator, space, world, points, args.python)
    show(result)
    if args.json is not None:
        args.json.write_text(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
