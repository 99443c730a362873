"""Time against terms and against sizes: cost should grow in proportion to the bytes moved.

avops and the floor in alternation. A case that fits the page cache runs warm, another one with its
inputs evicted before each run; one that does not fit the disk is left out, and said to be.
"""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bench import cache, compare, models, peers
from bench.floor import build, write_plan
from bench.peers import Job, Row
from bench.processes import Run, clear, launch, spread, summary
from bench.report import table

# Size of the model in MiB, number of terms.
CASES = ((2048, 1), (2048, 3), (2048, 8), (512, 3), (4096, 3), (512, 1), (8192, 1), (8192, 3))
# Above this size the two outputs are compared with each other only: the reference takes minutes.
_REFERENCE_UP_TO = 1024


def measure(directory: Path, runs: int) -> dict[str, Any]:
    program = build(directory)
    results, lines = [], []
    for mib, terms in CASES:
        model = models.Model.of(mib)
        # Inputs, and at worst two outputs at once.
        needed = model.nbytes * (terms + 3)
        if needed > shutil.disk_usage(directory).free:
            print(f"{mib} MiB, {terms} terms: needs {needed / 2**30:.0f} GiB of disk: left out")
            continue
        folder = directory / "case"
        folder.mkdir()
        try:
            found = _case(folder, program, model, terms, runs)
        finally:
            shutil.rmtree(folder)
        results.append({"terms": terms, "model_bytes": model.nbytes, **found})
        lines.append(_line(results[-1]))
    columns = ("inputs", "moved GiB", "avops wall s", "floor wall s", "of floor")
    title = f"cost against bytes: medians of {runs}, output flushed"
    table(title, (*columns, "s / GiB", "CPU s / GiB", "peak MiB"), lines)
    return {"cases": results, **_fit(results)}


def _case(
    folder: Path, program: Path | None, model: models.Model, terms: int, runs: int
) -> dict[str, Any]:
    base, aligned = models.make(folder, model, terms)
    job = Job(base, tuple(aligned), models.LAMS[:terms], folder)
    files = cache.data_files([base, *aligned])
    is_warm = cache.size(files) < 0.7 * cache.available()
    prepare: Callable[[], None] = partial(cache.warm if is_warm else cache.evict, files)
    rows = [peers.avops(job)]
    if program is not None:
        plan = folder / "plan.txt"
        write_plan(plan, base, aligned, job.lams)
        rows.append(peers.floor(job, program, plan))
    measured: dict[str, list[Run]] = {row.key: [] for row in rows}
    for number in range(runs):
        for row in rows:
            clear(job.out(row.key))
            prepare()
            out = job.out(row.key)
            measured[row.key].append(launch(row.argv, out, folder / "log.txt"))
        if number == 0:
            _check(job, rows, model)
    return {"warm": is_warm, "rows": {key: summary(found) for key, found in measured.items()}}


def _check(job: Job, rows: list[Row], model: models.Model) -> None:
    outs = [job.out(row.key) for row in rows]
    if model.nbytes <= _REFERENCE_UP_TO << 20 or len(outs) == 1:
        truth = job.out("reference")
        argv = [word.replace(str(outs[0]), str(truth)) for word in rows[0].argv]
        launch(argv, truth, job.scratch / "log.txt", {"AVOPS_BACKEND": "reference"})
        outs.append(truth)
    if not all(compare.same_bytes(out, outs[-1]) for out in outs[:-1]):
        raise SystemExit("avops, its reference and the floor do not agree: no figures")
    clear(outs[-1])


def _fit(cases: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Fixed seconds, seconds a GiB read and a GiB written of the warm cases, and how far off.

    Least squares of the relative errors: the smallest case counts as much as the largest.
    """
    warm = [case for case in cases if case["warm"]]
    found = {}
    for who in ("avops", "floor"):
        if len(warm) < 4 or who not in warm[0]["rows"]:
            continue
        written = np.array([case["model_bytes"] for case in warm]) / 2**30
        read = written * (1 + np.array([case["terms"] for case in warm]))
        wall = np.array([statistics.median(case["rows"][who]["flushed_s"]) for case in warm])
        sizes = np.stack([np.ones(len(warm)), read, written], axis=1)
        fit, *_ = np.linalg.lstsq(sizes / wall[:, None], np.ones(len(warm)), rcond=None)
        off = float(np.abs(sizes @ fit / wall - 1).max())
        keys = ("fixed_s", "s_per_gib_read", "s_per_gib_written", "largest_deviation")
        found[f"{who}_line"] = dict(zip(keys, (*fit.tolist(), off), strict=True))
        print(
            f"  {who}, warm: {fit[0]:.2f} s + {fit[1]:.3f} s a GiB read + {fit[2]:.3f} s a GiB "
            f"written; no case is further off than {off:.0%}"
        )
    return found


def _moved(case: dict[str, Any]) -> float:
    """GiB read and written."""
    return case["model_bytes"] * (case["terms"] + 2) / 2**30


def _line(case: dict[str, Any]) -> list[str]:
    gib = _moved(case)
    ours, floor = case["rows"]["avops"], case["rows"].get("floor")
    wall = statistics.median(ours["flushed_s"])
    state = "warm" if case["warm"] else "cold"
    size = f"{case['model_bytes'] / 2**30:.2f} GiB"
    cells = [f"{size}, {case['terms']} term{'s' * (case['terms'] > 1)}, {state}", f"{gib:.1f}"]
    cells.append(spread(ours["flushed_s"]))
    if floor is None:
        cells += ["–", "–"]
    else:
        cells.append(spread(floor["flushed_s"]))
        cells.append(f"{wall / statistics.median(floor['flushed_s']):.2f}×")
    cells += [f"{wall / gib:.3f}", f"{statistics.median(ours['cpu_s']) / gib:.3f}"]
    return [*cells, f"{max(ours['rss_mib'])}"]
