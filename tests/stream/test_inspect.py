"""Sizes and cosines of alignment vectors, with tensors of many chunks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from adapters import delta as adapter_delta
from adapters import family_adapter, save_by_hand, wide
from avops.disk import LowRank, Stored, open_checkpoint, open_vector
from avops.errors import MismatchError
from avops.stream import extract, inspect_adapter, inspect_vectors, plan_extract
from avops.stream import inspect as stream_inspect
from families import Family, Save

GROUPS = {
    "model.embed.weight": ("model.embed.weight",),
    "model.layers.*.w": ("model.layers.0.w", "model.layers.1.w"),
    "model.router.weight": ("model.router.weight",),
    "model.scale": ("model.scale",),
}


def delta(family: Family, model: str, names: tuple[str, ...]) -> np.ndarray:
    """The difference over ``names`` as one float64 vector."""
    parts = [
        (family.wide(model, n) - family.wide("base", n)).astype(np.float32).ravel() for n in names
    ]
    return np.concatenate(parts).astype(np.float64)


@pytest.mark.parametrize("chunk", [7, 31, 1031, 1 << 19])
@pytest.mark.parametrize("layout", ["family", "sharded_family"])
def test_sizes_and_cosines_in_any_chunks(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    layout: str,
    chunk: int,
) -> None:
    """One vector is an aligned checkpoint, the other a delta file (float32)."""
    family: Family = request.getfixturevalue(layout)
    extract(plan_extract(str(family.base), str(family.two), tmp_path / "av.safetensors"))
    vectors = [open_vector("one", family.one), open_vector("two", tmp_path / "av.safetensors")]
    monkeypatch.setattr(stream_inspect, "_CHUNK", chunk)
    report = inspect_vectors(vectors, open_checkpoint(family.base))
    every = tuple(name for names in GROUPS.values() for name in names)
    whole = [delta(family, model, every) for model in ("one", "two")]
    # float64 sums of under 2000 float32 values in another order: below 2000 * 2^-52 < 1e-12.
    for model, total, groups in zip(("one", "two"), report.totals, report.groups, strict=True):
        exact = delta(family, model, every)
        assert (total.elements, total.zeros) == (exact.size, np.count_nonzero(exact == 0))
        assert total.norm == pytest.approx(np.linalg.norm(exact), rel=1e-12)
        for group, names in GROUPS.items():
            part = delta(family, model, names)
            size = groups[group]
            assert (size.elements, size.zeros) == (part.size, np.count_nonzero(part == 0))
            assert size.norm == pytest.approx(np.linalg.norm(part), rel=1e-12)
    cosine = whole[0] @ whole[1] / np.linalg.norm(whole[0]) / np.linalg.norm(whole[1])
    assert report.cosines[0][1] == pytest.approx(cosine, abs=1e-12)
    assert report.cosines[0][1] == report.cosines[1][0]
    assert [report.cosines[i][i] for i in (0, 1)] == pytest.approx([1, 1], abs=1e-12)


@pytest.mark.parametrize("chunk", [7, 1 << 19])
def test_sizes_and_cosines_of_an_adapter(
    family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    """Low-rank differences, a tensor saved whole, and tensors that only the other vector has."""
    directory = family_adapter(tmp_path / "adapter")
    vectors = [open_vector("x", directory), open_vector("one", family.one)]
    monkeypatch.setattr(stream_inspect, "_CHUNK", chunk)
    report = inspect_vectors(vectors, open_checkpoint(family.base))
    embed, router = vectors[0].parts["model.embed.weight"], vectors[0].parts["model.router.weight"]
    assert isinstance(embed, LowRank)
    assert isinstance(router, Stored)
    whole = wide(vectors[0], router.tensor) - family.wide("base", "model.router.weight")
    mine = [adapter_delta(vectors[0], embed).ravel(), whole.astype(np.float32).ravel()]
    exact = np.concatenate(mine).astype(np.float64)
    assert report.totals[0].elements == exact.size == 37 * 16 + 5 * 3
    # float64 sums of under 2000 float32 values in another order: below 2000 * 2^-52 < 1e-12.
    assert report.totals[0].norm == pytest.approx(np.linalg.norm(exact), rel=1e-12)
    embeds = report.groups[0]["model.embed.weight"]
    assert embeds.norm == pytest.approx(np.linalg.norm(mine[0].astype(np.float64)), rel=1e-12)
    shared = delta(family, "one", ("model.embed.weight", "model.router.weight"))
    every = np.concatenate([delta(family, "one", names) for names in GROUPS.values()])
    cosine = exact @ shared / np.linalg.norm(exact) / np.linalg.norm(every)
    assert report.cosines[0][1] == pytest.approx(cosine, abs=1e-12)


def test_whole_tensors_of_an_adapter_need_the_base(tmp_path: Path) -> None:
    low_rank = open_vector("x", family_adapter(tmp_path / "a", whole=False))
    assert inspect_vectors([low_rank]).totals[0].elements == 37 * 16 + 5 * 3
    whole = open_vector("x", family_adapter(tmp_path / "b"))
    with pytest.raises(MismatchError, match="an adapter with whole tensors, which needs its base"):
        inspect_vectors([whole])


def test_a_tied_head_of_an_adapter_does_not_count(save: Save, tmp_path: Path) -> None:
    """The base stores one tensor, so the adapter's second copy of it is no second difference."""
    base = save("base.safetensors", {"embed_tokens.weight": np.zeros((3, 2), np.float32)})
    trained = np.ones((3, 2), np.float32)
    names = ("embed_tokens.weight", "lm_head.weight")
    vector = open_vector("x", save_by_hand(tmp_path / "a", dict.fromkeys(names, trained)))
    report = inspect_vectors([vector], open_checkpoint(base))
    assert (report.totals[0].elements, report.totals[0].squares) == (6, 6.0)


def test_what_an_adapter_changes(tmp_path: Path) -> None:
    groups = inspect_adapter(open_vector("x", family_adapter(tmp_path / "a")))
    embed, router = groups["model.embed.weight"], groups["model.router.weight"]
    assert (embed.ranks, embed.shapes, embed.whole) == ({3}, {(37, 16)}, 0)
    assert embed.scales == {float(np.float32(7 / np.sqrt(3)))}
    assert (router.ranks, router.shapes, router.whole, router.tensors) == (set(), {(5, 3)}, 1, 1)
