"""The fused way through a window gives what the general way gives, or gives way to it."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from avops.disk.source import Source as File
from avops.disk.source import aligned_memory
from avops.dtypes import BF16, F16
from avops.errors import AvopsError
from avops.kernels import extension
from avops.recipe import Recipe, Source, Term, parse_lam
from avops.stream import MergeOptions, merge, plan_merge, worker
from avops.stream.worker import Worker
from bits import bf16
from families import Save

native = pytest.mark.skipif(extension.NATIVE is None, reason=extension.REASON)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For every window, whether the fused way was taken."""
    found: list[bool] = []
    real = Worker.fused

    def watched(self: Worker, window: Any) -> Any:
        done = real(self, window)
        found.append(done is not None)
        return done

    monkeypatch.setattr(Worker, "fused", watched)
    return found


@pytest.fixture
def recipe(save: Save) -> Recipe:
    """Tensors of 1.5 MiB and of a few elements, behind a header of an odd length."""
    rng = np.random.default_rng(0)
    paths = []
    for name in ("base", "one", "two"):
        tensors = {
            "big": bf16(rng.standard_normal(3 << 18).astype(np.float32)),
            "half": rng.standard_normal(70_001).astype(np.float16),
            "ids": np.arange(11, dtype=np.int64),
            "small": bf16(rng.standard_normal(3).astype(np.float32)),
        }
        paths.append(str(save(f"{name}.safetensors", tensors)))
    terms = [
        Term(Source(p, p), parse_lam(t, "test"), t)
        for p, t in zip(paths[1:], (".3", "-1"), strict=True)
    ]
    return Recipe(paths[0], tuple(terms))


def outcome(recipe: Recipe, out: Path, **options: Any) -> tuple[str, object]:
    report = merge(plan_merge(recipe, out, MergeOptions(**options)))
    return hashlib.sha256(out.read_bytes()).hexdigest(), report.outputs[0].measured


@native
@pytest.mark.parametrize("scratch", [1 << 19, 6 * 2048 + 6 * 4096, 100_000])
@pytest.mark.parametrize(
    "options", [{}, {"dtype": F16}, {"rounding": "dither", "seed": 3}, {"dtype": BF16}], ids=str
)
def test_both_ways_give_the_same(
    recipe: Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    calls: list[bool],
    options: dict[str, Any],
    scratch: int,
) -> None:
    monkeypatch.setattr(worker, "SCRATCH", scratch)
    ours = outcome(recipe, tmp_path / "fused.safetensors", **options)
    assert calls
    assert all(calls)
    with monkeypatch.context() as patch:
        patch.setattr(Worker, "fused", lambda self, window: None)
        assert outcome(recipe, tmp_path / "general.safetensors", **options) == ours
    monkeypatch.setenv("AVOPS_BACKEND", "reference")
    assert outcome(recipe, tmp_path / "reference.safetensors", **options) == ours
    assert not any(calls[-2:])


@native
def test_what_is_not_cached_goes_the_general_way(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: list[bool]
) -> None:
    ours = outcome(recipe, tmp_path / "a.safetensors")
    monkeypatch.setattr(File, "cached_fd", lambda self, offset, nbytes: None)
    calls.clear()
    assert outcome(recipe, tmp_path / "b.safetensors") == ours
    assert not any(calls)


@native
def test_a_failing_read_is_reported_by_the_general_way(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: list[bool]
) -> None:
    """A descriptor that cannot be read from: the native operation gives up, and avops says why."""
    closed = os.open(os.devnull, os.O_WRONLY)
    monkeypatch.setattr(File, "cached_fd", lambda self, offset, nbytes: closed)
    ours = outcome(recipe, tmp_path / "a.safetensors")
    assert not any(calls)
    os.close(closed)
    monkeypatch.undo()
    assert outcome(recipe, tmp_path / "b.safetensors") == ours

    def broken(fd: int, buffers: object, offset: int) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(File, "cached_fd", lambda self, offset, nbytes: None)
    monkeypatch.setattr(os, "preadv", broken)
    with pytest.raises(AvopsError, match=r"safetensors: reading at byte \d+ failed: Input/output"):
        merge(plan_merge(recipe, tmp_path / "c.safetensors"))


@native
def test_the_native_operation_gives_up_at_the_end_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(bytes(10))
    scratch = np.frombuffer(aligned_memory(1 << 14), np.uint8)
    out = np.empty(6, np.uint16)
    fd = os.open(path, os.O_RDONLY)
    try:
        for n, whole in ((5, True), (6, False)):
            args = (((fd, 0, 2, 0.0, False),), out.ctypes.data, 2, n, None)
            found = extension.NATIVE.combine_files(*args, scratch.ctypes.data, 1 << 14)  # type: ignore[union-attr]
            assert found == ((0, n, 0, 0) if whole else None)
        args = (((fd, 0, 2, 0.0, False),), out.ctypes.data, 2, 5, None)
        assert extension.NATIVE.combine_files(*args, scratch.ctypes.data, 100) is None  # type: ignore[union-attr]
    finally:
        os.close(fd)
