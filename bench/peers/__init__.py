"""What avops is measured against: the same merge by other means, and copying.

A peer is left out, and said to be, where it does not import.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
# Elements that torch combines at once: of 2^14 to 2^20 and whole tensors the fastest here.
BLOCK = 1 << 18
MERGEKIT_TUNED = (
    *("--no-copy-tokenizer", "--no-write-model-card", "--quiet", "-j", "2"),
    *("--async-write", "--write-threads", "2", "--out-shard-size", "250M"),
)


@dataclass(frozen=True)
class Job:
    """The merge to do: base, aligned checkpoints with their λ, and where scratch files go."""

    base: Path
    aligned: tuple[Path, ...]
    lams: tuple[str, ...]
    scratch: Path

    def out(self, key: str) -> Path:
        return self.scratch / f"out-{key}"


@dataclass(frozen=True)
class Row:
    """A line of the table. ours: the output must have the reference's bytes.

    slow: measured fewer times. why: what makes a peer's output differ. merges: has a result.
    """

    key: str
    name: str
    argv: tuple[str, ...]
    ours: bool = False
    slow: bool = False
    why: str = ""
    merges: bool = True


def avops(job: Job) -> Row:
    specs = [f"{p}:{lam}" for p, lam in zip(job.aligned, job.lams, strict=True)]
    argv = (sys.executable, "-m", "avops", "merge", str(job.base), "--av", *specs)
    return Row("avops", "avops merge", (*argv, "-o", str(job.out("avops"))), ours=True)


def floor(job: Job, program: Path, plan: Path, *options: str, key: str = "floor") -> Row:
    words = {"floor": "floor, C++", "mapped": "floor, C++, mapped inputs"}
    argv = (str(program), str(plan), str(job.out(key)), *options)
    return Row(key, words.get(key, key), argv, ours=True)


def copy(job: Job) -> Row:
    argv = ("cp", "-r", str(job.base), str(job.out("cp")))
    return Row("cp", "cp -r of the base", argv, merges=False)


def torch_loops(job: Job, *, threads: Sequence[int] = (1, 2)) -> list[Row]:
    terms = [f"{lam}={path}" for lam, path in zip(job.lams, job.aligned, strict=True)]
    plain = (sys.executable, str(HERE / "plain.py"), str(job.base), str(job.out("plain")), *terms)
    rows = [Row("plain", "torch, 20 lines", plain, slow=True, why="nothing: the same order")]
    for count in threads:
        key = f"expert{count}"
        options = (str(count), str(BLOCK), str(job.base), str(job.out(key)))
        argv = (sys.executable, str(HERE / "expert.py"), *options, *terms)
        name = f"torch, by an expert, {count} thread{'s' * (count > 1)}"
        rows.append(Row(key, name, argv, why="add_(alpha=λ) rounds once, not twice"))
    return rows


def mergekit(job: Job, python: str) -> list[Row]:
    """Its defaults; its best settings; and these in float32."""
    cases = (
        ("mergekit", "mergekit, defaults", "bfloat16", ()),
        ("tuned", "mergekit, tuned", "bfloat16", MERGEKIT_TUNED),
        ("float32", "mergekit, tuned, float32", "float32", MERGEKIT_TUNED),
    )
    rows = []
    for key, name, dtype, options in cases:
        config = job.scratch / f"{key}.yml"
        config.write_text(_config(job, dtype))
        argv = (str(Path(python).parent / "mergekit-yaml"), str(config), str(job.out(key)))
        why = "every step is rounded to bfloat16, λ too" if dtype == "bfloat16" else "order of sums"
        rows.append(Row(key, name, (*argv, *options), slow=True, why=why))
    return rows


def _config(job: Job, dtype: str) -> str:
    lines = ["merge_method: task_arithmetic", f"base_model: {job.base}", "models:"]
    for path, lam in zip(job.aligned, job.lams, strict=True):
        lines += [f"  - model: {path}", f"    parameters: {{weight: {float(lam)}}}"]
    return "\n".join([*lines, f"dtype: {dtype}", "out_dtype: bfloat16"]) + "\n"


def version(python: str, package: str) -> str | None:
    """The version of ``package`` there; None when it is missing."""
    code = f"import importlib.metadata as m; print(m.version({package!r}))"
    found = subprocess.run([python, "-c", code], check=False, capture_output=True, text=True)
    return found.stdout.strip() or None
