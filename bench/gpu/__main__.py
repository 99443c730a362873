"""Benchmarks on a device.

    python -m bench.gpu [--device cuda] [--part combine|live|score] [--json FILE] [--layers 8]

combine   combine_many against a copy and torch: a 7B's tensors, and many small ones
live      Knobs: loading from disk, set() by residency
score     a 7B, 300 queries × 3 responses, beside transformers' loops and lm-evaluation-harness
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bench.gpu import combine, live, scoring
from bench.report import machine, table


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--part", choices=("combine", "live", "score"), action="append")
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--layers", type=int, default=8, help="of the model that is on disk")
    parser.add_argument("--items", type=int, help="queries that are scored, 300 unless told")
    parser.add_argument("--tiny", action="store_true", help="small shapes, to try the benchmark")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def show_combine(name: str, found: dict[str, Any]) -> None:
    rows = []
    for key, way in found["ways"].items():
        if "missing" in way:
            print(f"  {key}: {way['missing']}")
            continue
        rate = combine.MOVED * found["elements"] / way["median_s"] / 1e12
        rows.append(
            [
                key,
                f"{way['median_s'] * 1e3:.2f} [{way['min_s'] * 1e3:.2f}, {way['max_s'] * 1e3:.2f}]",
                f"{rate:.2f}",
                f"{way['share_of_copy']:.0%}",
                f"{way['differing_share']:.2g}",
            ]
        )
    copy = found["copy"]
    rows.append(["a copy of one model", f"{copy['median_s'] * 1e3:.2f}",
                 f"{copy['bytes_per_s'] / 1e12:.2f}", "100%", "–"])  # fmt: skip
    title = f"{name}: {found['elements'] / 1e9:.2f}e9 elements in {found['tensors']} tensors"
    columns = ("base + 3 aligned, bf16", "ms", "TB/s needed", "of the copy", "elements that differ")
    table(title, columns, rows)


def show_live(found: dict[str, Any]) -> None:
    rows = [
        [
            f"Knobs, {residency}",
            f"{way['made_s']:.2f} s, {way['made_bytes_per_s'] / 1e9:.1f} GB/s",
            f"{way['set']['median_s'] * 1e3:.1f}",
            f"{way['set_bytes_per_s'] / 1e9:.0f}",
            f"{way['allocated_by_sets']}",
        ]
        for residency, way in found["residencies"].items()
    ]
    title = f"base of {found['base_bytes'] / 2**30:.1f} GiB + 3 aligned, files in the page cache"
    table(title, ("residency", "made", "set() ms", "GB/s", "bytes allocated by 8 sets"), rows)
    for key, rate in found["host_copy"].items():
        print(f"  host to device, {key.split('_')[0]}: {rate / 1e9:.1f} GB/s")


def main() -> None:
    args = arguments()
    device = torch.device(args.device)
    on_gpu = device.type == "cuda"
    data: dict[str, Any] = {"gpu": torch.cuda.get_device_name(device) if on_gpu else "none"}
    data |= machine()
    parts = args.part or ("combine", "live", "score")
    if "combine" in parts:
        cases = {"7B": combine.seven_b(), "small tensors": combine.small()}
        if args.tiny:
            cases = {"7B": [(64, 48), (7,)], "small tensors": combine.small(20, 64)}
        for name, shapes in cases.items():
            data[name] = combine.measure(name, shapes, device)
            show_combine(name, data[name])
            if on_gpu:
                torch.cuda.empty_cache()
    if "live" in parts:
        hidden, layers = (512, 1) if args.tiny else (args.hidden, args.layers)
        with tempfile.TemporaryDirectory(prefix="avops-gpu-") as directory:
            data["live"] = live.measure(Path(directory), device, hidden, layers)
        show_live(data["live"])
        if on_gpu:
            torch.cuda.empty_cache()
    if "score" in parts:
        shape = scoring.TINY if args.tiny else scoring.Shape()
        if args.items:
            shape = replace(shape, items=args.items)
        data["score"] = scoring.measure(shape, device)
        scoring.show(data["score"])
    if args.json:
        args.json.write_text(json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    main()
