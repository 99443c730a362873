"""Peak memory of merges larger than any memory, over sparse files (all holes, all zeros).

First a model with one tensor of more than 2^31 elements, its output written for real. Then, when
asked for, a model of any size: its output would not fit the disk, so bench/holes.cpp is preloaded,
which leaves out blocks of zeros when they are written. avops itself runs unchanged.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from bench import models
from bench.processes import Run, clear, launch
from bench.report import table

HUGE = ("model.embed_tokens.weight", (2**16 + 1, 2**15))  # 2^31 + 2^15 elements
LAYER = (2**14, 2**14)
HOLES = Path(__file__).parent / "holes.cpp"
LIMIT_MIB = 150


@dataclass(frozen=True)
class Sparse(models.Model):
    """One huge tensor, then as many of 512 MiB as fill ``layers``."""

    def layer(self, number: int) -> models.Tensors:
        return [(f"model.layers.{number}.mlp.up_proj.weight", LAYER)]

    def tensors(self) -> models.Tensors:
        return [HUGE, *(tensor for i in range(self.layers) for tensor in self.layer(i))]


def measure(directory: Path, gib: int) -> dict[str, Any]:
    found = {"a tensor of more than 2^31 elements": _run(directory, Sparse(0, 1), {})}
    if gib:
        shim = _build_holes(directory)
        if shim is None:
            print("no C++ compiler: no run on files larger than the disk")
        else:
            model = Sparse(0, max(1, (gib - 4) * 2))
            preload = {"LD_PRELOAD": str(shim)}
            found[f"{gib} GiB in sparse files, zeros not written"] = _run(directory, model, preload)
    columns = ("base + 1 aligned checkpoint", "model GiB", "wall s", "CPU s", "peak MiB")
    lines = [
        [name, f"{size / 2**30:.1f}", f"{run.wall:.1f}", f"{run.cpu:.1f}", f"{run.rss:.0f}"]
        for name, (size, run) in found.items()
    ]
    table(f"peak memory (limit {LIMIT_MIB} MiB)", columns, lines)
    if any(run.rss > LIMIT_MIB for _, run in found.values()):
        raise SystemExit(f"above {LIMIT_MIB} MiB")
    return {
        name: {"model_bytes": size, "wall_s": run.wall, "cpu_s": run.cpu, "rss_mib": run.rss}
        for name, (size, run) in found.items()
    }


def _run(directory: Path, model: Sparse, environment: dict[str, str]) -> tuple[int, Run]:
    folder = directory / "sparse"
    folder.mkdir()
    paths = [folder / "base", folder / "aligned"]
    for path in paths:
        models.write_shards(path, model, _hole)
    out = folder / "out"
    words = (sys.executable, "-m", "avops", "merge", str(paths[0]), "--av", f"{paths[1]}:-1")
    try:
        run = launch((*words, "-o", str(out)), out, directory / "log.txt", environment)
        _check_zeros(out, model)
        clear(out)
    finally:
        shutil.rmtree(folder)
    return model.nbytes, run


def _hole(file: BinaryIO, shape: tuple[int, ...]) -> None:
    end = file.tell() + 2 * models.elements(shape)
    file.truncate(end)
    file.seek(end)


def _check_zeros(out: Path, model: Sparse) -> None:
    """Sizes, and the last page of each file: all zeros."""
    files = sorted(out.glob("*.safetensors"))
    if sum(file.stat().st_size for file in files) < model.nbytes:
        raise SystemExit("the output is too short")
    for file in files:
        with file.open("rb") as handle:
            handle.seek(-4096, os.SEEK_END)
            if handle.read().strip(b"\0"):
                raise SystemExit("the output is not the sum")


def _build_holes(directory: Path) -> Path | None:
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        return None
    library = directory / "holes.so"
    argv = [compiler, "-std=c++17", "-O2", "-shared", "-fPIC", str(HOLES), "-o", str(library)]
    subprocess.run([*argv, "-ldl"], check=True)
    return library
