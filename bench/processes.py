"""Whole processes, started from nothing and measured: wall and CPU seconds, memory, flushing."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

# A process inherits its parent's peak memory: a small parent must start it.
LAUNCHER = """
import json, os, sys, time
start = time.perf_counter()
pid = os.posix_spawnp(sys.argv[2], sys.argv[2:], os.environ)
_, status, usage = os.wait4(pid, 0)
wall = time.perf_counter() - start
status = os.waitstatus_to_exitcode(status)
with open(sys.argv[1], "w") as file:
    json.dump([status, wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024], file)
"""


@dataclass(frozen=True)
class Run:
    """One process. flush: seconds that an fsync of its output took afterwards.

    cpu: of the process, without what the kernel does later for an output that it did not flush.
    """

    wall: float
    flush: float
    cpu: float
    rss: float

    @property
    def flushed(self) -> float:
        return self.wall + self.flush


def launch(
    argv: Sequence[str], out: Path, log: Path, environment: Mapping[str, str] | None = None
) -> Run:
    """Run ``argv``, which makes the directory ``out``. Raises SystemExit when it fails."""
    report = log.with_suffix(".json")
    start = [sys.executable, "-S", "-c", LAUNCHER, str(report), *argv]
    with log.open("wb") as file:
        subprocess.run(
            start,
            check=True,
            stdout=file,
            stderr=file,
            env={**os.environ, **(environment or {})},
        )
    status, wall, cpu, rss = json.loads(report.read_text())
    if status:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
        raise SystemExit(f"{' '.join(argv[:3])} …: exit status {status}\n{tail}")
    return Run(wall, _flush(out), cpu, rss)


def _flush(out: Path) -> float:
    """Seconds to put the files of ``out`` and its directory entries on the disk."""
    start = time.perf_counter()
    if out.exists():
        files = [path for path in out.rglob("*") if path.is_file()] if out.is_dir() else [out]
        for path in (*files, *([out] if out.is_dir() else []), out.parent):
            fd = os.open(path, os.O_RDONLY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
    return time.perf_counter() - start


def clear(out: Path) -> None:
    """Remove an output, and wait until the disk has done so."""
    if out.exists():
        shutil.rmtree(out)
        os.sync()


def summary(runs: Sequence[Run]) -> dict[str, list[float]]:
    """Figures of all runs, for the results file."""
    return {
        "flushed_s": [round(run.flushed, 3) for run in runs],
        "wall_s": [round(run.wall, 3) for run in runs],
        "cpu_s": [round(run.cpu, 3) for run in runs],
        "rss_mib": [round(run.rss) for run in runs],
    }


def spread(values: Sequence[float]) -> str:
    """Median [min, max]."""
    return f"{statistics.median(values):.2f} [{min(values):.2f}, {max(values):.2f}]"
