"""The floor: a C++ program that does only what a merge must, built when it is needed."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from avops.disk import Checkpoint, open_checkpoint

SOURCE = Path(__file__).parent / "floor.cpp"


def build(directory: Path) -> Path | None:
    """The program, built in ``directory``; None without a C++ compiler."""
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        return None
    program = directory / "floor"
    flags = ("-std=c++17", "-O3", "-march=native", "-ffp-contract=off", "-pthread")
    subprocess.run([compiler, *flags, str(SOURCE), "-o", str(program)], check=True)
    return program


def write_plan(path: Path, base: Path, aligned: Sequence[Path], lams: Sequence[str]) -> None:
    """What the floor is to do: headers as the base's, all tensors combined, small files copied.

    Tensors that follow each other in all files are one line: the floor knows no tensors.
    """
    models = [open_checkpoint(base), *(open_checkpoint(p) for p in aligned)]
    origin = models[0]
    lines = [f"lam {np.float32(lam)!s}" for lam in lams]
    starts = []
    for model in models:
        starts.append(sum(line.startswith("input") for line in lines))
        lines += [f"input {shard.path.resolve()}" for shard in model.shards]
    for number, shard in enumerate(origin.shards):
        lines.append(f"output {shard.path.stat().st_size} {shard.path.name}")
        tensors = sorted(shard.tensors, key=lambda tensor: tensor.offset)
        lines.append(f"copy 0 {tensors[0].offset} {number} 0")
        lines += _merges(models, starts, [tensor.name for tensor in tensors])
    lines += [f"side {file.name} {file.resolve()}" for file in sorted(base.glob("*.json"))]
    path.write_text("\n".join(lines) + "\n")


def _merges(models: Sequence[Checkpoint], starts: Sequence[int], names: Sequence[str]) -> list[str]:
    found: list[list[int]] = []  # offset in the output, elements, then file and offset of each
    for name in names:
        tensors = [model.tensors[name] for model in models]
        where = [
            number
            for start, tensor in zip(starts, tensors, strict=True)
            for number in (start + tensor.shard, tensor.offset)
        ]
        line = [tensors[0].offset, tensors[0].count, *where]
        if found and _follows(found[-1], line):
            found[-1][1] += line[1]
        else:
            found.append(line)
    return ["merge " + " ".join(map(str, line)) for line in found]


def _follows(one: Sequence[int], two: Sequence[int]) -> bool:
    end = 2 * one[1]
    files = one[2::2] == two[2::2]
    offsets = all(a + end == b for a, b in zip(one[3::2], two[3::2], strict=True))
    return files and offsets and one[0] + end == two[0]
