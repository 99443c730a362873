"""Knobs on a device: loading from disk, and set() by residency."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from avops.disk import open_checkpoint
from avops.dtypes import BF16
from avops.kernels import Operand, Term, combine
from avops.knobs import Knobs, Mapped
from avops.score import new_model
from bench import cache, models
from bench.gpu.timing import allocated, clocked, wait

LAMS = {"one": -1.0, "two": -1.0, "three": 0.6}
_SAMPLED = 12


def config(hidden: int, layers: int) -> dict[str, Any]:
    return {
        "model_type": "mistral",
        "hidden_size": hidden,
        "intermediate_size": int(hidden * models.FFN_SHARE),
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // models.HEAD,
        "num_key_value_heads": hidden // models.HEAD // models.KV_SHARE,
        "head_dim": models.HEAD,
        "vocab_size": models.VOCAB,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
    }


def measure(directory: Path, device: torch.device, hidden: int, layers: int) -> dict[str, Any]:
    shape = models.Model(hidden, layers)
    base, aligned = models.make(directory, shape, len(LAMS))
    paths = dict(zip(("base", *LAMS), (base, *aligned), strict=True))
    with torch.device(device):
        model = new_model(config(hidden, layers)).to(torch.bfloat16)
    model = model.to(device).eval()
    found: dict[str, Any] = {"base_bytes": shape.nbytes, "host_copy": _host_copy(device)}
    found["residencies"] = {}
    for residency in ("device", "pinned", "disk") if device.type == "cuda" else ("disk",):
        cache.warm(cache.data_files(list(paths.values())))
        found["residencies"][residency] = _residency(model, paths, device, residency, shape.nbytes)
    return found


def _host_copy(device: torch.device) -> dict[str, float]:
    """Bytes per second from pinned and from pageable host memory: what loading can reach."""
    if device.type != "cuda":
        return {}
    target = torch.empty(1 << 30, dtype=torch.uint8, device=device)
    rates = {}
    for name, pinned in (("pinned", True), ("pageable", False)):
        host = torch.ones(1 << 30, dtype=torch.uint8, pin_memory=pinned)
        seconds = clocked(lambda host=host: target.copy_(host, non_blocking=True), device).median
        rates[f"{name}_bytes_per_s"] = host.numel() / seconds
    return rates


def _residency(
    model: Any, paths: dict[str, Path], device: torch.device, residency: str, nbytes: int
) -> dict[str, Any]:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    wait(device)
    start = time.perf_counter()
    knobs = Knobs(
        model,
        {name: paths[name] for name in LAMS},
        base=paths["base"],
        **({"residency": residency} if device.type == "cuda" else {}),
    )
    wait(device)
    made = time.perf_counter() - start
    knobs.set(LAMS)
    before = allocated(device)
    result = clocked(lambda: knobs.set(LAMS), device, runs=7)
    grown = allocated(device) - before
    _check(model, paths)
    with knobs.at(one=0.5):
        pass
    _check(model, paths)
    found = {
        "made_s": made,
        "made_bytes_per_s": 4 * nbytes / made,
        "set": result.figures(),
        "set_bytes_per_s": 5 * nbytes / result.median,
        "allocated_by_sets": grown,
        "effective": dict(knobs.effective),
    }
    if device.type == "cuda":
        found["peak_device_bytes"] = int(torch.cuda.max_memory_allocated(device))
    return found


def _check(model: Any, paths: dict[str, Path]) -> None:
    """A sample of the weights on the device is the reference's, bit for bit."""
    maps = {name: Mapped(open_checkpoint(path)).operands for name, path in paths.items()}
    weights = sorted(model.state_dict().items(), key=lambda item: item[1].numel())
    for name, tensor in weights[:: max(1, len(weights) // _SAMPLED)]:
        cut = slice(0, 1 << 22)
        base = Operand(maps["base"][name].array[cut], BF16)
        terms = [
            Term(Operand(maps[av][name].array[cut], BF16), float(np.float32(lam)), True)
            for av, lam in LAMS.items()
        ]
        out = Operand(np.empty(base.array.size, np.uint16), BF16)
        combine(base, terms, out, backend="reference")
        ours = tensor.reshape(-1)[cut].cpu().view(torch.int16).numpy().view(np.uint16)
        if not np.array_equal(ours, out.array):
            raise SystemExit(f"{name}: the device's weights are not the reference's: no figures")
