"""The native engine gives what the general way gives, or gives way to it."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from avops.disk import source
from avops.disk.source import Source as File
from avops.dtypes import BF16, F16
from avops.errors import AvopsError, MismatchError
from avops.kernels import extension
from avops.recipe import Recipe, Source, Term, parse_lam
from avops.stream import (
    MergeOptions,
    engine,
    extract,
    merge,
    pipeline,
    plan_extract,
    plan_merge,
    windows,
    worker,
)
from avops.stream.sink import StagingSink
from bits import bf16
from families import Save

pytestmark = pytest.mark.skipif(extension.NATIVE is None, reason=extension.REASON)


@pytest.fixture
def blocks(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets the size of a block."""

    def set_size(size: int) -> None:
        for module in (windows, worker, pipeline):
            monkeypatch.setattr(module, "BLOCK", size)

    return set_size


@pytest.fixture
def recipe(save: Save) -> Recipe:
    """Tensors of 1.5 MiB and of a few elements, behind a header of an odd length."""
    rng = np.random.default_rng(0)
    paths = []
    for name in ("base", "one", "two"):
        tensors = {
            "big": bf16(rng.standard_normal(3 << 18).astype(np.float32)),
            "half": rng.standard_normal(70_001).astype(np.float16),
            "ids": np.arange(40_011, dtype=np.int64),
            "mask": np.zeros(3, np.bool_),
            "single": rng.standard_normal(30_003).astype(np.float32),
            "small": bf16(rng.standard_normal(3).astype(np.float32)),
        }
        paths.append(str(save(f"{name}.safetensors", tensors)))
    terms = [
        Term(Source(p, p), parse_lam(t, "test"), t)
        for p, t in zip(paths[1:], (".3", "-1"), strict=True)
    ]
    return Recipe(paths[0], tuple(terms))


def evict(recipe: Recipe) -> None:
    """Leave nothing of the inputs in the page cache."""
    for path in (recipe.base, *(term.source.path for term in recipe.terms)):
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def outcome(recipe: Recipe, out: Path, **options: Any) -> tuple[str, object]:
    report = merge(plan_merge(recipe, out, MergeOptions(**options)))
    return hashlib.sha256(out.read_bytes()).hexdigest(), report.outputs[0].measured


@pytest.mark.parametrize("cached", [True, False], ids=["cached", "uncached"])
@pytest.mark.parametrize("size", [1 << 20, 1 << 16, 10_001])
@pytest.mark.parametrize(
    "options", [{}, {"dtype": F16}, {"rounding": "dither", "seed": 3}, {"dtype": BF16}], ids=str
)
def test_both_ways_give_the_same(
    recipe: Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    general: list[tuple[int, int]],
    blocks: Callable[[int], None],
    options: dict[str, Any],
    size: int,
    cached: bool,
) -> None:
    """Bytes, counts and the effective λ; where the disk can, with reads past the page cache."""
    blocks(size)
    monkeypatch.setattr(source, "DIRECT_FROM", 512)
    if not cached:
        evict(recipe)
    ours = outcome(recipe, tmp_path / "engine.safetensors", **options)
    assert general == []
    monkeypatch.setattr(pipeline, "serves", lambda plan, block: False)
    assert outcome(recipe, tmp_path / "general.safetensors", **options) == ours
    assert general
    monkeypatch.undo()
    monkeypatch.setenv("AVOPS_BACKEND", "reference")
    assert outcome(recipe, tmp_path / "reference.safetensors", **options) == ours


def test_differences_of_checkpoints(
    recipe: Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    general: list[tuple[int, int]],
    blocks: Callable[[int], None],
) -> None:
    found = []
    for name, size in (("a", 1 << 20), ("b", 5003), ("general", 1 << 20)):
        blocks(size)
        if name == "general":
            assert general == []
            monkeypatch.setattr(pipeline, "serves", lambda plan, block: False)
        out = tmp_path / f"{name}.safetensors"
        report = extract(plan_extract(recipe.base, recipe.terms[0].source.path, out))
        found.append((out.read_bytes(), report.zeros))
    assert general
    assert found == [found[0]] * 3


def test_events_of_elements_that_straddle_are_counted(
    save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, blocks: Callable[[int], None]
) -> None:
    """Infinities from an odd byte on: every block ends, or begins, in the middle of one."""
    values = {"a": np.ones(1, np.uint8), "w": bf16(np.full(5000, np.inf, np.float32))}
    recipe = Recipe(
        str(save("base.safetensors", values)),
        (Term(Source("one", str(save("one.safetensors", values))), 0.5, ".5"),),
    )
    seen = []
    for name in ("engine", "general"):
        blocks(1000)
        if name == "general":
            monkeypatch.setattr(pipeline, "serves", lambda plan, block: False)
        report = merge(
            plan_merge(recipe, tmp_path / f"{name}.out", MergeOptions(allow_nonfinite=True))
        )
        seen.append((report.outputs[0].measured, report.notes[-1].replace(name, "")))
    assert "holds 5000 values that are NaN or infinite" in seen[0][1]
    assert seen[0] == seen[1]


@pytest.mark.parametrize("dtype", ["F64", "F8_E4M3", "C64"])
def test_what_no_kernel_computes_on_is_not_converted(
    save: Save, tmp_path: Path, dtype: str
) -> None:
    """Not even where nothing is added to it."""
    size = {"F64": 8, "F8_E4M3": 1, "C64": 8}[dtype]
    header = b'{"a":{"dtype":"%s","shape":[100],"data_offsets":[0,%d]}}' % (
        dtype.encode(),
        100 * size,
    )
    base = tmp_path / "odd.safetensors"
    base.write_bytes(len(header).to_bytes(8, "little") + header + bytes(100 * size))
    delta = save("one.safetensors", {"w": np.zeros(3, np.float32)})
    recipe = Recipe(str(base), (Term(Source("one", str(delta)), 0.0, "0"),))
    with pytest.raises(MismatchError, match=r"tensor 'a' is .*(save it as F32|: quantised)"):
        plan_merge(recipe, tmp_path / "out.safetensors", MergeOptions(dtype=BF16))
    report = merge(plan_merge(recipe, tmp_path / "out.safetensors"))
    assert (tmp_path / "out.safetensors").read_bytes()[-100 * size :] == bytes(100 * size)
    assert report.elements == 0


def test_many_terms_take_less_at_once(recipe: Recipe, tmp_path: Path) -> None:
    plan = plan_merge(recipe, tmp_path / "out.safetensors").plan
    assert pipeline.blocks_together(plan, cached=True) == 1
    assert pipeline.blocks_together(plan, cached=False) == 2
    big = max(plan.segments, key=lambda segment: len(segment.terms))
    many = dataclasses.replace(big, terms=big.terms * 50)
    wide = dataclasses.replace(plan, segments=(many,))
    assert pipeline.blocks_together(wide, cached=False) == 1


def test_memory_does_not_grow_with_candidates(recipe: Recipe, tmp_path: Path) -> None:
    plan = plan_merge(recipe, tmp_path / "out.safetensors").plan
    big = max(plan.segments, key=lambda segment: segment.nbytes)
    taken = []
    for count in (1, 3, engine.GROUP, 500):
        terms = [dataclasses.replace(t, lams=t.lams * count) for t in big.terms]
        segment = dataclasses.replace(big, terms=tuple(terms))
        many = dataclasses.replace(plan, segments=(segment,), candidates=count)
        assert engine.serves(many, pipeline.BLOCK)
        threads, each = pipeline.affordable(many, 16)
        taken.append(threads * each)
        # A window of each candidate of a group, and what it is made from.
        assert each >= (min(count, engine.GROUP) + 3) << 20
        assert threads >= 4
    assert max(taken) <= 72 << 20
    assert taken[-1] == taken[-2]


def test_a_short_end_of_a_file_is_left_to_python(
    recipe: Recipe, tmp_path: Path, general: list[tuple[int, int]], blocks: Callable[[int], None]
) -> None:
    """It has another digest, which the engine does not know."""
    whole = tmp_path / "whole.safetensors"
    expected = outcome(recipe, whole)
    size = whole.stat().st_size
    for rest in (1, 240, 241):
        block = (size - rest) // 3
        blocks(block)
        general.clear()
        assert outcome(recipe, tmp_path / f"{rest}.safetensors")[0] == expected[0]
        assert size - 3 * block - rest in range(3)
        left = size % block
        assert general == ([(0, 3)] if 0 < left < 241 else [])


# ---- what fails there


def test_a_read_that_fails_is_done_again_in_the_general_way(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, general: list[tuple[int, int]]
) -> None:
    expected = outcome(recipe, tmp_path / "a.safetensors")
    unreadable = os.open(os.devnull, os.O_WRONLY)
    monkeypatch.setattr(File, "fd", property(lambda self: unreadable))
    monkeypatch.setattr(File, "direct_fd", lambda self: -1)
    assert outcome(recipe, tmp_path / "b.safetensors") == expected
    assert sorted(general) == [(0, block) for block in range(3)]
    os.close(unreadable)

    def broken(fd: int, buffers: object, offset: int) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", broken)
    monkeypatch.setattr(os, "pread", broken)
    with pytest.raises(AvopsError, match=r"safetensors: reading at byte \d+ failed: Input/output"):
        merge(plan_merge(recipe, tmp_path / "c.safetensors"))
    assert sorted(path.name for path in tmp_path.glob("[!.]*.safetensors")) == [
        *("a.safetensors", "b.safetensors", "base.safetensors", "one.safetensors"),
        "two.safetensors",
    ]


def test_an_input_that_ended_early(recipe: Recipe, tmp_path: Path) -> None:
    plan = plan_merge(recipe, tmp_path / "out.safetensors")
    os.truncate(recipe.terms[0].source.path, 1_000_000)
    with pytest.raises(AvopsError, match=r"one\.safetensors: changed while it was in use"):
        merge(plan)
    assert not plan.target.exists()


def test_a_write_that_fails_is_done_again_in_the_general_way(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, general: list[tuple[int, int]]
) -> None:
    expected = outcome(recipe, tmp_path / "a.safetensors")
    unwritable = os.open(os.devnull, os.O_RDONLY)
    monkeypatch.setattr(StagingSink, "descriptors", [(unwritable, -1)])
    assert outcome(recipe, tmp_path / "b.safetensors") == expected
    assert sorted(general) == [(0, block) for block in range(3)]
    os.close(unwritable)


def native_threads() -> int:
    return len(os.listdir("/proc/self/task"))


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_no_thread_goes_on_after_an_error(
    recipe: Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    blocks: Callable[[int], None],
    error: type[BaseException],
) -> None:
    blocks(1000)
    before, here = native_threads(), sorted(os.listdir(tmp_path))
    seen = []

    def progress(done: int, total: int) -> None:
        seen.append(native_threads())
        raise error

    monkeypatch.setattr(engine, "_PATIENCE", 0.0)
    plan = plan_merge(recipe, tmp_path / "out.safetensors")
    with pytest.raises(error):
        merge(plan, threads=4, progress=progress)
    assert len(seen) == 1
    assert native_threads() <= before
    assert [thread for thread in threading.enumerate() if thread.name.startswith("avops")] == []
    assert sorted(os.listdir(tmp_path)) == here


def test_what_an_interrupt_left_is_taken_up(
    recipe: Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    blocks: Callable[[int], None],
    general: list[tuple[int, int]],
) -> None:
    """Blocks that are there are read and compared; a damaged one is written again."""
    blocks(100_000)
    expected = outcome(recipe, tmp_path / "a.safetensors")
    real, written = StagingSink.written, []

    def interrupted(self: StagingSink, output: int, block: int, *rest: Any) -> None:
        if len(written) == 5:
            raise KeyboardInterrupt
        written.append(block)
        real(self, output, block, *rest)

    out = tmp_path / "x" / "out.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr(StagingSink, "written", interrupted)
        with pytest.raises(KeyboardInterrupt):
            outcome(recipe, out, resume=True)
    (stage,) = out.parent.iterdir()
    staged = stage / "files" / out.name
    with staged.open("r+b") as file:
        file.seek(written[2] * 100_000 + 17)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    again: list[int] = []

    def counted(self: StagingSink, output: int, block: int, *rest: Any) -> None:
        again.append(block)
        real(self, output, block, *rest)

    monkeypatch.setattr(StagingSink, "written", counted)
    assert outcome(recipe, out, resume=True) == expected
    assert general == []
    count = -(-out.stat().st_size // 100_000)
    assert sorted(again) == sorted(set(range(count)) - set(written) | {written[2]})
