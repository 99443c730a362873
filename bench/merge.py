"""Merging on disk: avops, a plain torch loop, and `cp`, as whole processes in alternation.

    python -m bench.merge [--mib 1024] [--runs 5] [--json FILE]

Work: a bf16 base of Mistral's shapes with three aligned checkpoints (random), terms -1, -1, .6.
Every process starts from nothing (imports included) and reads from a warm page cache. avops
flushes its output to disk before it publishes it; the torch loop (safetensors' own writer) and cp
do not, so they are timed followed by an fsync of their file, too. Results are compared with
avops's reference backend before any figure is printed.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from avops.disk import encode_header, open_checkpoint
from avops.dtypes import BF16
from bench.report import machine, table

TORCH_LOOP = """
import sys, torch
from safetensors import safe_open
from safetensors.torch import save_file
base, one, two, three, out = sys.argv[1:]
models = [safe_open(path, "pt") for path in (base, one, two, three)]
merged = {}
for name in models[0].keys():
    start = models[0].get_tensor(name).float()
    delta = torch.zeros_like(start)
    for model, lam in zip(models[1:], (-1.0, -1.0, 0.6)):
        delta += lam * (model.get_tensor(name).float() - start)
    merged[name] = (start + delta).bfloat16()
save_file(merged, out, {"format": "pt"})
"""


def shapes(mib: int) -> list[tuple[str, tuple[int, ...]]]:
    """Mistral's layer shapes at a quarter of its width, as many layers as fill ``mib``."""
    hidden, ffn, kv, vocab = 1024, 3584, 256, 8192
    layer = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (kv, hidden),
        "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (ffn, hidden),
        "mlp.up_proj": (ffn, hidden),
        "mlp.down_proj": (hidden, ffn),
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
    }
    ends = [("model.embed_tokens.weight", (vocab, hidden)), ("model.norm.weight", (hidden,))]
    ends.append(("lm_head.weight", (vocab, hidden)))
    per_layer = sum(int(np.prod(shape)) for shape in layer.values())
    count = max(1, (mib * 2**19 - sum(int(np.prod(s)) for _, s in ends)) // per_layer)
    names = [
        (f"model.layers.{i}.{name}.weight", shape)
        for i in range(count)
        for name, shape in layer.items()
    ]
    return [ends[0], *names, *ends[1:]]


def make_model(path: Path, tensors: list[tuple[str, tuple[int, ...]]], seed: int) -> None:
    """Random bf16 weights around 0.02; aligned models (seed > 0) differ from seed 0 by 1e-3."""
    base = np.random.default_rng(0)
    step = np.random.default_rng(seed)
    prefix, _ = encode_header([(n, BF16, s) for n, s in tensors], {"format": "pt"})
    with path.open("wb") as file:
        file.write(prefix)
        for _, shape in tensors:
            values = base.standard_normal(int(np.prod(shape)), np.float32) * np.float32(0.02)
            if seed:
                values += step.standard_normal(values.size, np.float32) * np.float32(1e-3)
            file.write((values.view(np.uint32) >> np.uint32(16)).astype(np.uint16).tobytes())


# A process inherits its parent's peak memory: a small parent must start it.
LAUNCHER = """
import json, os, sys, time
start = time.perf_counter()
pid = os.posix_spawnp(sys.argv[2], sys.argv[2:], os.environ)
_, status, usage = os.wait4(pid, 0)
wall = time.perf_counter() - start
with open(sys.argv[1], "w") as file:
    json.dump([status, wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024], file)
"""


def run(argv: list[str], out: Path, *, sync: bool) -> tuple[float, float, float]:
    """(wall seconds, CPU seconds, peak RSS in MiB) of one process, with its output removed."""
    for path in (out, out.with_name(f"{out.stem}.avops_recipe.json")):
        path.unlink(missing_ok=True)
    report = out.with_suffix(".json")
    launch = [sys.executable, "-S", "-c", LAUNCHER, str(report), *argv]
    subprocess.run(launch, check=True, stdout=subprocess.DEVNULL)
    status, wall, cpu, peak = json.loads(report.read_text())
    if status:
        raise SystemExit(f"{argv[0]}: exit status {status}")
    if sync:
        start = time.perf_counter()
        fd = os.open(out, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)
        wall += time.perf_counter() - start
    return wall, cpu, peak


def differing(path: Path, truth: Path) -> int:
    """Elements of two bf16 checkpoints that differ."""
    ours, theirs = open_checkpoint(path), open_checkpoint(truth)
    total = 0
    for name, tensor in theirs.tensors.items():
        other = ours.tensors[name]
        a = np.memmap(truth, np.uint16, "r", tensor.offset, (tensor.count,))
        b = np.memmap(path, np.uint16, "r", other.offset, (other.count,))
        total += int(np.count_nonzero(a != b))
    return total


def measure(directory: Path, mib: int, runs: int) -> dict[str, object]:
    tensors = shapes(mib)
    paths = [directory / f"{name}.safetensors" for name in ("base", "one", "two", "three")]
    for seed, path in enumerate(paths):
        make_model(path, tensors, seed)
    base, *aligned = map(str, paths)
    outs = {name: directory / f"out-{name}.safetensors" for name in ("avops", "torch", "cp", "ref")}
    specs = [f"{p}:{lam}" for p, lam in zip(aligned, ("-1", "-1", ".6"), strict=True)]
    ours = [sys.executable, "-m", "avops", "merge", base, "--av", *specs, "-o"]
    loop = [sys.executable, "-c", TORCH_LOOP, base, *aligned, str(outs["torch"])]
    commands = {
        "avops": ([*ours, str(outs["avops"])], outs["avops"], False),
        "torch loop": (loop, outs["torch"], False),
        "torch loop + sync": (loop, outs["torch"], True),
        "cp of one + sync": (["cp", base, str(outs["cp"])], outs["cp"], True),
    }
    environment = {**os.environ, "AVOPS_BACKEND": "reference"}
    subprocess.run(
        [*ours, str(outs["ref"])], check=True, env=environment, stdout=subprocess.DEVNULL
    )
    for argv, out, sync in commands.values():
        run(argv, out, sync=sync)
    if not filecmp.cmp(outs["avops"], outs["ref"], shallow=False):
        raise SystemExit("avops's native result differs from its reference: no figures")
    elements = sum(int(np.prod(shape)) for _, shape in tensors)
    results: dict[str, list[tuple[float, float, float]]] = {name: [] for name in commands}
    for _ in range(runs):
        for name, (argv, out, sync) in commands.items():
            results[name].append(run(argv, out, sync=sync))
    return {
        "model_mib": elements * 2 / 2**20,
        "runs": runs,
        "torch_differs": differing(outs["torch"], outs["ref"]) / elements,
        "rows": {
            name: {
                "wall_s": [round(r[0], 3) for r in rows],
                "cpu_s": [round(r[1], 3) for r in rows],
                "rss_mib": [round(r[2]) for r in rows],
            }
            for name, rows in results.items()
        },
    }


def _cells(row: dict[str, list[float]], ours: float) -> list[str]:
    wall = statistics.median(row["wall_s"])
    return [
        f"{wall:.2f} [{min(row['wall_s']):.2f}, {max(row['wall_s']):.2f}]",
        f"{wall / ours:.1f}×",
        f"{statistics.median(row['cpu_s']):.2f}",
        f"{max(row['rss_mib'])}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=1024, help="size of the base")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument(
        "--dir", type=Path, help="where to put the models (default: a temporary directory)"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.dir) as directory:
        data = measure(Path(directory), args.mib, args.runs)
    rows = data["rows"]
    assert isinstance(rows, dict)
    ours = statistics.median(rows["avops"]["wall_s"])
    cells = [[name, *_cells(row, ours)] for name, row in rows.items()]
    title = (
        f"base {data['model_mib']:.0f} MiB bf16 + 3 aligned checkpoints, page cache warm, "
        f"{args.runs} runs"
    )
    table(title, ("process", "wall s [min, max]", "ratio", "CPU s", "peak MiB"), cells)
    print(f"the torch loop differs from the reference in {data['torch_differs']:.2e} of elements")
    if args.json:
        args.json.write_text(json.dumps({**machine(), **data}, indent=2) + "\n")


if __name__ == "__main__":
    main()
