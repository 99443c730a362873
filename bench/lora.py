"""Merging LoRA adapters as whole processes: avops, PEFT, and avops's own full merge, in turn.

    python -m bench.merge --lora [1 3] [--mib 2048] [--runs 5] [--save]

Work: a sharded bf16 base of Mistral's shapes with adapters of rank 16 over all linear layers
(random), each at λ 1. PEFT loads the base and the adapters, merges, and saves. Beside them one
aligned checkpoint is merged in full: an adapter should cost little more than its arithmetic.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench import cache, models, peers
from bench.peers import Job, Row
from bench.processes import clear

RANK, ALPHA = 16, 32
FULL = "full"


def make(path: Path, model: models.Model, seed: int) -> Path:
    """An adapter of ``model``'s linear layers, bf16, as PEFT saves it."""
    rng = np.random.default_rng(seed)
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    parts: list[bytes] = []
    end = 0
    linear = [(name, shape) for name, shape in model.tensors() if "_proj." in name]
    for name, (rows, columns) in linear:
        module = f"base_model.model.{name.removesuffix('.weight')}"
        for factor, shape in (("A", (RANK, columns)), ("B", (rows, RANK))):
            values = rng.standard_normal(shape, np.float32) * np.float32(0.02)
            # Cut to bf16: random numbers need no rounding.
            parts.append((values.view(np.uint32) >> np.uint32(16)).astype("<u2").tobytes())
            start, end = end, end + len(parts[-1])
            place = {"dtype": "BF16", "shape": shape, "data_offsets": (start, end)}
            header[f"{module}.lora_{factor}.weight"] = place
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.mkdir()
    (path / "adapter_model.safetensors").write_bytes(
        len(text).to_bytes(8, "little") + text + b"".join(parts)
    )
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": RANK,
        "lora_alpha": ALPHA,
        "target_modules": sorted({name.split(".")[-2] for name, _ in linear}),
        "bias": "none",
    }
    (path / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
    return path


def rows(job: Job, aligned: Path) -> list[Row]:
    """avops with the adapters of ``job``, avops with ``aligned`` in full, and the peers."""
    full = peers.avops(dataclasses.replace(job, aligned=(aligned,), lams=("1",)))
    argv = tuple(word.replace(str(job.out("avops")), str(job.out(FULL))) for word in full.argv)
    found = [
        peers.avops(job),
        dataclasses.replace(full, key=FULL, name="avops, one aligned checkpoint", argv=argv),
    ]
    if peers.version(sys.executable, "peft"):
        found.append(_peft(job))
    else:
        print("no peft here: no peer")
    return [*found, peers.copy(job)]


def _peft(job: Job) -> Row:
    adapters = (str(path) for path in job.aligned)
    script = str(peers.HERE / "adapters.py")
    argv = (sys.executable, script, str(job.base), str(job.out("peft")), *adapters)
    why = "its products are summed in another order, and weights rounded after every adapter"
    return Row("peft", "PEFT: load, merge_and_unload, save", argv, slow=True, why=why)


def measure(
    directory: Path, mib: int, runs: int, counts: Sequence[int], slow_runs: int
) -> dict[str, Any]:
    """A table for every number of adapters in ``counts``."""
    from bench.merge import Bench

    model = models.Model.of(mib)
    base, (aligned,) = models.make(directory, model, 1)
    made = [make(directory / f"lora-{k + 1}", model, k) for k in range(max(counts))]
    cases = []
    for count in counts:
        job = Job(base, tuple(made[:count]), ("1",) * count, directory)
        files = cache.data_files([base, aligned, *job.aligned])
        bench = Bench(job, rows(job, aligned), lambda files=files: cache.warm(files))
        bench.make_truth()
        bench.make_truth(FULL)
        bench.measure(runs, min(runs, slow_runs))
        plural = "s" if count > 1 else ""
        title = f"{model.nbytes / 2**30:.2f} GiB bf16, {count} adapter{plural} of rank {RANK}"
        bench.show(f"{title}, page cache warm")
        ours, full = bench.median("avops"), bench.median(FULL)
        assert ours is not None
        assert full is not None
        print(f"  {ours / full:.2f}× of a full merge of one aligned checkpoint")
        cases.append({"adapters": count, **bench.figures()})
        for key in ("reference", f"reference-{FULL}"):
            clear(job.out(key))
    return {"model_bytes": model.nbytes, "rank": RANK, "cases": cases}
