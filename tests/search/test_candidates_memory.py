"""Many candidates on one model: memory stays where the second one left it."""

from __future__ import annotations

import ctypes
import gc
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from avops.recipe import Source, Term, parse_lam
from avops.search import Evaluator, Setup
from small_project import SmallProject

MED = Source("med", "avs/med.safetensors")
CANDIDATES = 40


class MallInfo(ctypes.Structure):
    """glibc's mallinfo2."""

    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks",
        "fordblks", "keepcost",
    )]  # fmt: skip


def malloc_bytes() -> int | None:
    """Bytes that are allocated now, torch's tensors among them; None where glibc cannot say."""
    function = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if function is None:
        return None
    function.restype = MallInfo
    found = function()
    return int(found.uordblks + found.hblkhd)


def resident_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmRSS")


def tensors() -> tuple[int, int]:
    """How many tensors live, and their elements."""
    found = [x for x in gc.get_objects() if issubclass(type(x), torch.Tensor)]
    return len(found), sum(x.numel() for x in found)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc on this system")
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_forty_candidates_need_no_more_than_two(project: SmallProject, dtype: str) -> None:
    evaluator = Evaluator(Setup("base.safetensors", (MED,), "items.jsonl", device="cpu",
                                dtype=dtype, batch_tokens=200))  # fmt: skip

    def candidate(number: int) -> None:
        lam = parse_lam(f"{number / 10 - 2:.1f}", "test")
        scores = evaluator.evaluate([Term(MED, lam, str(lam))])
        assert math.isfinite(float(scores.sum()))

    def measured() -> dict[str, Any]:
        gc.collect()
        return {"tensors": tensors(), "malloc": malloc_bytes(), "resident": resident_bytes()}

    for number in range(2):
        candidate(number)
    second = measured()
    for number in range(2, CANDIDATES):
        candidate(number)
    last = measured()
    assert last["tensors"] == second["tensors"]
    # One run's log-probs, kept by each candidate, are the least that could be left behind.
    least = 4 * int(evaluator.plan.scored.sum()) * (CANDIDATES - 2)
    if second["malloc"] is not None:
        assert last["malloc"] - second["malloc"] < least / 2
    # A copy of the weights, kept by each, would be the usual leak; the system counts whole pages.
    weights = sum(p.numel() * p.element_size() for p in evaluator.live.model.parameters())
    assert last["resident"] - second["resident"] < weights * (CANDIDATES - 2) / 2


def test_a_leak_would_be_seen() -> None:
    before = malloc_bytes()
    if before is None:
        pytest.skip("no mallinfo2")
    kept = [torch.zeros(1000) for _ in range(CANDIDATES - 2)]
    after = malloc_bytes()
    assert after is not None
    assert after - before >= 4 * 1000 * (CANDIDATES - 2)
    assert tensors()[0] >= len(kept)
