"""Sizes and cosines of alignment vectors, with tensors of many chunks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from avops.disk import open_checkpoint, open_vector
from avops.stream import extract, inspect_vectors, plan_extract
from avops.stream import inspect as stream_inspect
from families import Family

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
