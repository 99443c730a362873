"""Knobs on a device: loading from disk, and set() by residency."""

from __future__ import annotations

import time
import traceback
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
from bench.gpu.record import Kept, RefusedError, nothing
from bench.gpu.timing import allocated, clocked, forget, peak, wait

LAMS = {"one": -1.0, "two": -1.0, "three": 0.6}
_SAMPLED = 12


def config(hidden: int, layers: int, vocabulary: int = models.VOCAB) -> dict[str, Any]:
    return {
        "model_type": "mistral",
        "hidden_size": hidden,
        "intermediate_size": int(hidden * models.FFN_SHARE),
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // models.HEAD,
        "num_key_value_heads": hidden // models.HEAD // models.KV_SHARE,
        "head_dim": models.HEAD,
        "vocab_size": vocabulary,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
    }


def measure(
    directory: Path,
    device: torch.device,
    size: tuple[int, int, int],
    found: dict[str, Any],
    keep: Kept = nothing,
) -> None:
    """Every residency in turn, into ``found``; ``keep`` is called after each.

    size: columns, layers and vocabulary of the model.
    """
    shape = models.Model(*size)
    start = time.perf_counter()
    paths = make(directory, shape)
    found |= {"files": str(directory), "base_bytes": shape.nbytes}
    found |= {"written_s": time.perf_counter() - start}
    with torch.device(device):
        model = new_model(config(*size)).to(torch.bfloat16)
    model = model.to(device).eval()
    found |= {"host_copy": _host_copy(device), "residencies": {}}
    keep()
    for residency in ("device", "pinned", "disk"):
        _read(paths)
        try:
            way = _residency(model, paths, device, residency, shape.nbytes)
        except RefusedError as error:
            way = {"refused": str(error)}
        except Exception as error:
            # Whatever it is, the next one is tried.
            traceback.print_exc()
            way = {"refused": f"{type(error).__name__}: {error}"}
        found["residencies"][residency] = way
        keep()


def make(directory: Path, shape: models.Model) -> dict[str, Path]:
    """The base's checkpoint and the aligned ones."""
    base, aligned = models.make(directory, shape, len(LAMS))
    return dict(zip(("base", *LAMS), (base, *aligned), strict=True))


def _read(paths: dict[str, Path]) -> None:
    """Read all files, so that they are in the page cache if there is room. Not asked of the kernel:
    not every one tells.
    """
    buffer = bytearray(1 << 22)
    for file in cache.data_files(list(paths.values())):
        with file.open("rb", buffering=0) as opened:
            while opened.readinto(buffer):
                pass


def _host_copy(device: torch.device) -> dict[str, float]:
    """Bytes per second from pinned and from pageable host memory: what loading can reach."""
    nbytes = 1 << (30 if device.type == "cuda" else 16)
    target = torch.empty(nbytes, dtype=torch.uint8, device=device)
    rates = {}
    for name in ("pinned", "pageable"):
        host = torch.ones(nbytes, dtype=torch.uint8)
        if name == "pinned" and device.type == "cuda":
            host = host.pin_memory()
        seconds = clocked(lambda host=host: target.copy_(host, non_blocking=True), device).median
        rates[f"{name}_bytes_per_s"] = nbytes / seconds
    return rates


def _residency(
    model: Any, paths: dict[str, Path], device: torch.device, residency: str, nbytes: int
) -> dict[str, Any]:
    forget(device)
    wait(device)
    start = time.perf_counter()
    avs = {name: paths[name] for name in LAMS}
    knobs = Knobs(model, avs, base=paths["base"], residency=residency)
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
    return {
        "made_s": made,
        "made_bytes_per_s": 4 * nbytes / made,
        "set": result.figures(),
        "set_bytes_per_s": 5 * nbytes / result.median,
        "allocated_by_sets": grown,
        "effective": dict(knobs.effective),
        "peak_device_bytes": peak(device),
    }


def _check(model: Any, paths: dict[str, Path]) -> None:
    """A sample of the weights on the device is the reference's, bit for bit."""
    maps = {name: Mapped(open_checkpoint(path)).operands for name, path in paths.items()}
    weights = sorted(model.state_dict().items(), key=lambda item: item[1].numel())
    for name, tensor in weights[:: max(1, len(weights) // _SAMPLED)]:
        cut = slice(0, 1 << 20)
        base = Operand(maps["base"][name].array[cut], BF16)
        terms = [
            Term(Operand(maps[av][name].array[cut], BF16), float(np.float32(lam)), True)
            for av, lam in LAMS.items()
        ]
        out = Operand(np.empty(base.array.size, np.uint16), BF16)
        combine(base, terms, out, backend="reference")
        ours = tensor.reshape(-1)[cut].cpu().view(torch.int16).numpy().view(np.uint16)
        if not np.array_equal(ours, out.array):
            raise RefusedError(f"{name}: the device's weights are not the reference's")
