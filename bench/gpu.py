"""Setting λ and scoring on a device: what a sweep costs per point.

    python -m bench.gpu [--device cuda] [--hidden 2048] [--layers 8] [--json FILE]

Work: a random bf16 model of Mistral's shapes with three aligned checkpoints in memory-mapped files,
λ set five times (after a warm-up), then 60 + 240-token items scored in float32.
Refuses to print figures unless the weights on the device equal the reference backend's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from avops.disk import open_checkpoint
from avops.dtypes import BF16
from avops.kernels import Operand, Term, combine
from avops.knobs import Knobs, Mapped
from avops.score import Item, Items, Scorer, encode_ids, new_model
from bench.merge import make_model
from bench.report import machine, table

LAMS = {"one": -1.0, "two": -1.0, "three": 0.6}
RUNS = 5


def config(hidden: int, layers: int) -> dict[str, Any]:
    return {
        "model_type": "mistral",
        "hidden_size": hidden,
        "intermediate_size": hidden * 7 // 2,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // 64,
        "num_key_value_heads": hidden // 256,
        "head_dim": 64,
        "vocab_size": 32768,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": False,
    }


def wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def measure(directory: Path, device: str, hidden: int, layers: int, items: int) -> dict[str, Any]:
    model = new_model(config(hidden, layers)).to(torch.bfloat16).to(device).eval()
    shapes = [(name, tuple(tensor.shape)) for name, tensor in model.state_dict().items()]
    paths = {name: directory / f"{name}.safetensors" for name in ("base", *LAMS)}
    for seed, path in enumerate(paths.values()):
        make_model(path, shapes, seed)
    knobs = Knobs(model, {name: paths[name] for name in LAMS}, base=paths["base"])
    times = []
    for _ in range(RUNS + 1):
        knobs.set()
        wait(device)
        start = time.perf_counter()
        knobs.set(LAMS)
        wait(device)
        times.append(time.perf_counter() - start)
    check(model, paths)
    nbytes = open_checkpoint(paths["base"]).nbytes
    data: dict[str, Any] = {
        "base_bytes": nbytes,
        "set_s": [round(t, 4) for t in times[1:]],
        "set_gb_per_s": 5 * nbytes / statistics.median(times[1:]) / 1e9,
    }
    data |= score(model.float(), device, items)
    return data


def score(model: Any, device: str, count: int) -> dict[str, Any]:
    """Seconds and tokens per second of scoring 3 responses of 240 tokens for each query of 60."""
    levels = ("exp", "gen", "avd")
    entries = tuple(
        Item("x", "q", dict.fromkeys(levels, "r"), line) for line in range(1, count + 1)
    )
    rng = np.random.default_rng(0)
    ids = [[rng.integers(5, 32000, 300).tolist() for _ in levels] for _ in entries]
    for row in ids:
        for response in row[1:]:
            response[:60] = row[0][:60]
    plan = encode_ids(Items("random", levels, entries), ids, [[60] * 3] * count, score_eos=False)
    scorer = Scorer(model, plan)
    times = []
    for _ in range(3):
        start = time.perf_counter()
        scorer.run()
        wait(device)
        times.append(time.perf_counter() - start)
    tokens = 300 * 3 * count
    rate = tokens / statistics.median(times[1:])
    return {"score_s": [round(t, 3) for t in times[1:]], "score_tokens_per_s": round(rate)}


def check(model: Any, paths: dict[str, Path]) -> None:
    """The weights on the device are the reference backend's, bit for bit."""
    maps = {name: Mapped(open_checkpoint(path)).operands for name, path in paths.items()}
    for name, tensor in model.state_dict().items():
        out = Operand(np.empty(tensor.numel(), np.uint16), BF16)
        terms = [Term(maps[av][name], float(np.float32(lam)), True) for av, lam in LAMS.items()]
        combine(maps["base"][name], terms, out, backend="reference")
        ours = tensor.cpu().view(-1).view(torch.int16).numpy().view(np.uint16)
        if not np.array_equal(ours, out.array):
            raise SystemExit(f"{name}: the device's weights differ from the reference: no figures")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--items", type=int, default=50)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    name = torch.cuda.get_device_name() if args.device.startswith("cuda") else "CPU"
    with tempfile.TemporaryDirectory() as directory:
        data = measure(Path(directory), args.device, args.hidden, args.layers, args.items)
    rows = [
        ["Knobs.set, 3 aligned checkpoints", f"{statistics.median(data['set_s']):.3f} s",
         f"{data['set_gb_per_s']:.2f} GB/s moved"],
        [f"score {args.items} × 3 × 300 tokens, f32", f"{statistics.median(data['score_s']):.2f} s",
         f"{data['score_tokens_per_s']:,} tokens/s"],
    ]  # fmt: skip
    size = data["base_bytes"] / 2**20
    table(f"{name}, base {size:.0f} MiB bf16", ("work", "median", "rate"), rows)
    if args.json:
        args.json.write_text(json.dumps({"gpu": name, **machine(), **data}, indent=2) + "\n")


if __name__ == "__main__":
    main()
