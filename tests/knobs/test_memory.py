"""Nothing grows: buffers are taken once, however often λ is set."""

from __future__ import annotations

import gc
import tracemalloc
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from avops.knobs import Knobs
from knobs.simulated import Simulated, use
from knobs.toy import LAMS, make

RUNS = 30


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("residency", ["auto", "device", "pinned", "disk"])
def test_python_and_numpy_allocate_nothing_that_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wide: bool, residency: str
) -> None:
    world = make(tmp_path)
    if residency != "auto":
        use(monkeypatch, Simulated("at once"))
    model = world.model(torch.float32 if wide else None)
    knobs = Knobs(model, world.avs, base=world.base, residency=residency)

    def turn() -> int:
        for number in range(RUNS):
            knobs.set(LAMS if number % 2 else {"fin": 0.1})
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        turn()
        held = [turn() for _ in range(5)]
        # A list that is kept each time takes 56 bytes of its own, an array more; it would show in
        # every turn, other threads' allocations only in some.
        assert min(after - before for before, after in pairwise(held)) < RUNS * 56
    finally:
        tracemalloc.stop()


def test_nothing_large_is_allocated_after_the_first_time(tmp_path: Path) -> None:
    """Not even for the time of a ``set``: staging and low-rank differences have their memory."""
    from safetensors.torch import save_file

    from adapters import save_by_hand

    size = 700
    model = torch.nn.Sequential(torch.nn.Linear(size, size, bias=False)).eval()
    save_file({"0.weight": torch.randn(size, size).bfloat16()}, tmp_path / "b.safetensors")
    sides = {"lora_A.weight": torch.randn(2, size), "lora_B.weight": torch.randn(size, 2)}
    arrays = {f"base_model.model.0.{name}": side.numpy() for name, side in sides.items()}
    avs = {"a": save_by_hand(tmp_path / "a", arrays)}
    knobs = Knobs(model, avs, base=tmp_path / "b.safetensors")
    knobs.set(a=0.5)
    tracemalloc.start()
    try:
        knobs.set(a=-0.5)
        assert tracemalloc.get_traced_memory()[1] < size * size  # half of the tensor in bf16
    finally:
        tracemalloc.stop()


def resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def test_memory_stays(tmp_path: Path) -> None:
    """Torch's memory, too: 30 copies of these 8 MiB would show, and a tenth of that may pass."""
    from safetensors.torch import save_file

    model = torch.nn.Linear(2048, 2048, bias=False).to(torch.float32).eval()
    base = {"weight": torch.randn(2048, 2048).to(torch.bfloat16)}
    aligned = {"weight": torch.randn(2048, 2048).to(torch.bfloat16)}
    save_file(base, tmp_path / "b.safetensors")
    save_file(aligned, tmp_path / "a.safetensors")
    knobs = Knobs(model, {"a": tmp_path / "a.safetensors"}, base=tmp_path / "b.safetensors")
    for _ in range(5):
        knobs.set(a=0.5)
    before = resident()
    for number in range(RUNS):
        knobs.set(a=number / 10)
    assert resident() - before < RUNS * base["weight"].nbytes / 10
