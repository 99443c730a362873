"""The native engine with LoRA adapters and several candidates, through the public way."""

from __future__ import annotations

import hashlib
import itertools
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adapters import save_by_hand
from avops.disk import source
from avops.dtypes import F16
from avops.errors import AvopsError
from avops.kernels import extension
from avops.recipe import Recipe, Source, Term, parse_lam
from avops.stream import (
    MergeOptions,
    engine,
    extract,
    merge,
    pipeline,
    plan_extract,
    plan_merges,
    windows,
    worker,
)
from avops.stream.sink import StagingSink
from bits import bf16
from families import Save

pytestmark = [
    pytest.mark.skipif(extension.NATIVE is None, reason=extension.REASON),
    pytest.mark.usefixtures("general"),
]

ROWS, COLUMNS, RANK = 501, 1999, 5
LAMS = [("1", "0", "-.5"), ("0", "0", "0"), ("0", ".25", "0"), ("-1", ".5", "2")]


def use_blocks(patch: pytest.MonkeyPatch, size: int) -> None:
    for module in (windows, worker, pipeline):
        patch.setattr(module, "BLOCK", size)


def general_only(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(pipeline, "serves", lambda plan, block: False)


@pytest.fixture
def paths(save: Save, tmp_path: Path) -> list[Path]:
    """A base of 2 MB, an aligned checkpoint, and two adapters; the second, in f16, transposed."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) * 0.1).astype(np.float32)

    shapes = {"model.wide": (ROWS, COLUMNS), "model.tall": (700, 3)}
    models = []
    for name in ("base", "one"):
        tensors = {f"{key}.weight": bf16(normal(*shape)) for key, shape in shapes.items()}
        tensors["model.ids"] = np.arange(7, dtype=np.int64)
        tensors["model.norm.weight"] = normal(33)
        models.append(save(f"{name}.safetensors", tensors))
    for number, (name, config) in enumerate(
        (("two", {}), ("three", {"fan_in_fan_out": True, "use_rslora": True}))
    ):
        factors = {}
        for key, shape in shapes.items():
            rows, columns = reversed(shape) if number else shape
            a, b = normal(RANK, columns), normal(rows, RANK)
            kind = np.float16 if number else None
            factors[f"base_model.model.{key}.lora_A.weight"] = a.astype(kind) if kind else bf16(a)
            factors[f"base_model.model.{key}.lora_B.weight"] = b.astype(kind) if kind else b
        models.append(save_by_hand(tmp_path / name, factors, {"r": RANK, **config}))
    return models


def recipes(paths: list[Path], lams: list[tuple[str, ...]]) -> list[Recipe]:
    return [
        Recipe(
            str(paths[0]),
            tuple(
                Term(Source(path.stem, str(path), "auto"), parse_lam(lam, "test"), lam)
                for path, lam in zip(paths[1:], point, strict=True)
            ),
        )
        for point in lams
    ]


def merged(wanted: list[Recipe], into: Path, threads: int = 3, **options: Any) -> list[Any]:
    """Of each output what it is, what its recipe says, and what was counted."""
    outs = [into / f"{number}.safetensors" for number in range(len(wanted))]
    plan = plan_merges(list(zip(wanted, outs, strict=True)), MergeOptions(**options))
    report = merge(plan, threads=threads)
    # Recipes name their file.
    return [
        (hashlib.sha256(out.read_bytes()).hexdigest(), dict(one.record))
        for out, one in zip(outs, report.outputs, strict=True)
    ]


def evict(paths: list[Path]) -> None:
    """Leave nothing of the inputs in the page cache."""
    for file in (*paths[:2], *(path / "adapter_model.safetensors" for path in paths[2:])):
        fd = os.open(file, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


@pytest.mark.parametrize("cached", [True, False], ids=["cached", "uncached"])
@pytest.mark.parametrize("size", [1 << 20, 60_013])
@pytest.mark.parametrize("options", [{}, {"dtype": F16}, {"rounding": "dither"}], ids=str)
def test_both_ways_give_the_same(
    paths: list[Path],
    tmp_path: Path,
    general: list[tuple[int, int]],
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    size: int,
    cached: bool,
) -> None:
    """Bytes and recipes; and each output is that of a merge of its own."""
    use_blocks(monkeypatch, size)
    monkeypatch.setattr(source, "DIRECT_FROM", 512)
    if not cached:
        evict(paths)
    wanted = recipes(paths, LAMS)
    ours = merged(wanted, tmp_path / "engine", **options)
    single = [
        merged([one], tmp_path / f"single{number}", **options)[0][0]
        for number, one in enumerate(wanted)
    ]
    assert general == []
    assert len(set(single)) == len(single)
    assert [weights for weights, _ in ours] == single
    general_only(monkeypatch)
    theirs = merged(wanted, tmp_path / "general", **options)
    assert general
    assert theirs == [
        (weights, {**record, "files": theirs[number][1]["files"]})
        for number, (weights, record) in enumerate(ours)
    ]
    if options == {}:
        monkeypatch.setenv("AVOPS_BACKEND", "reference")
        again = merged(wanted, tmp_path / "reference", **options)
        assert [weights for weights, _ in again] == single


def test_more_candidates_than_are_computed_together(
    paths: list[Path],
    tmp_path: Path,
    general: list[tuple[int, int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use_blocks(monkeypatch, 300_007)
    lams = [(str(k), str(-k / 4), ".5") for k in range(2 * engine.GROUP + 1)]
    ours = merged(recipes(paths, lams), tmp_path / "engine")
    assert general == []
    general_only(monkeypatch)
    assert [one[0] for one in merged(recipes(paths, lams), tmp_path / "x")] == [
        one[0] for one in ours
    ]


def test_differences_from_adapters(
    paths: list[Path],
    tmp_path: Path,
    general: list[tuple[int, int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = []
    for name in ("engine", "general"):
        if name == "general":
            assert general == []
            general_only(monkeypatch)
        out = tmp_path / f"{name}.safetensors"
        report = extract(plan_extract(str(paths[0]), str(paths[3]), out))
        found.append((out.read_bytes(), report.zeros, report.elements))
    assert general
    assert found[0] == found[1]


# ---- what is interrupted, or fails


def interrupt(patch: pytest.MonkeyPatch, after: int) -> list[tuple[int, int]]:
    """Have writing stop after some blocks; the sinks and blocks that were written go there."""
    real, written = StagingSink.written, []

    def interrupted(self: StagingSink, output: int, block: int, *rest: Any) -> None:
        if len(written) == after:
            raise KeyboardInterrupt
        written.append((int(self._staging.target.stem), block))
        real(self, output, block, *rest)

    patch.setattr(StagingSink, "written", interrupted)
    return written


def test_what_an_interrupt_left_of_several_is_taken_up(
    paths: list[Path],
    tmp_path: Path,
    general: list[tuple[int, int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of each candidate other blocks are there; those that are missing or damaged are written."""
    size = 50_000
    use_blocks(monkeypatch, size)
    wanted = recipes(paths, LAMS)
    expected = merged(wanted, tmp_path / "whole")
    into = tmp_path / "x"
    with monkeypatch.context() as patch:
        written = interrupt(patch, 27)
        with pytest.raises(KeyboardInterrupt):
            merged(wanted, into, resume=True)
    number, block = damaged = written[4]
    staged = (
        next(into.glob(f".{number}.safetensors.avops-partial-*")) / f"files/{number}.safetensors"
    )
    with staged.open("r+b") as file:
        file.seek(block * size + 17)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    with monkeypatch.context() as patch:
        again = interrupt(patch, -1)
        assert same(merged(wanted, into, resume=True), expected)
    assert general == []
    blocks = range(-(-(into / "0.safetensors").stat().st_size // size))
    everything = set(itertools.product(range(len(LAMS)), blocks))
    assert sorted(again) == sorted(everything - set(written) | {damaged})


def same(found: list[Any], expected: list[Any]) -> bool:
    """Whether all is equal but the files' names."""
    return [
        (weights, {**record, "files": list(record["files"].values())}) for weights, record in found
    ] == [
        (weights, {**record, "files": list(record["files"].values())})
        for weights, record in expected
    ]


def test_outputs_that_are_finished_are_left_alone(
    paths: list[Path],
    tmp_path: Path,
    general: list[tuple[int, int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wanted = recipes(paths, LAMS)
    into = tmp_path / "x"
    expected = merged(wanted, into)
    for number in (0, 3):
        for path in into.glob(f"{number}.*"):
            path.unlink()
    again = interrupt(monkeypatch, -1)
    assert merged(wanted, into, resume=True) == expected
    assert general == []
    assert {number for number, _ in again} == {0, 3}


def test_what_the_engine_leaves_is_done_for_the_candidates_that_lack_it(
    paths: list[Path],
    tmp_path: Path,
    general: list[tuple[int, int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The third output cannot be written to natively; what it lacks is done again."""
    use_blocks(monkeypatch, 50_000)
    wanted = recipes(paths, LAMS)
    expected = merged(wanted, tmp_path / "a")
    real, unwritable = StagingSink.descriptors, os.open(os.devnull, os.O_RDONLY)

    def descriptors(self: StagingSink) -> Any:
        mine = real.fget(self)  # type: ignore[attr-defined]
        return [(unwritable, -1)] if self._staging.target.stem == "2" else mine

    monkeypatch.setattr(StagingSink, "descriptors", property(descriptors))
    assert same(merged(wanted, tmp_path / "b"), expected)
    assert general
    os.close(unwritable)


@pytest.mark.parametrize("which", [1, 2])
def test_an_input_that_is_cut_short_meanwhile(
    paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: int
) -> None:
    use_blocks(monkeypatch, 1000)
    monkeypatch.setattr(engine, "_PATIENCE", 0.0)
    path = paths[which] if paths[which].is_file() else paths[which] / "adapter_model.safetensors"
    cut: list[int] = []

    def progress(done: int, total: int) -> None:
        if not cut:
            cut.append(done)
            os.truncate(path, 5000)

    outs = [tmp_path / f"o/{number}.safetensors" for number in range(len(LAMS))]
    plan = plan_merges(list(zip(recipes(paths, LAMS), outs, strict=True)), MergeOptions())
    with pytest.raises(AvopsError, match="changed while it was in use|ended|short"):
        merge(plan, threads=2, progress=progress)
    assert cut
    assert not any(out.exists() for out in outs)
