"""extract against numpy, and the layout of what it writes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from adapters import delta, family_adapter, wide
from avops.disk import (
    RECIPE_NAME,
    LowRank,
    check_vector,
    fingerprint,
    open_base,
    open_checkpoint,
    open_vector,
)
from avops.dtypes import BF16, F32, DType
from avops.errors import CheckpointError, MismatchError, NonFiniteError
from avops.stream import extract, plan_extract
from bits import bf16
from families import Family, Save

FLOATING = (
    "model.embed.weight",
    "model.empty",
    "model.layers.0.w",
    "model.layers.1.w",
    "model.router.weight",
    "model.scale",
)


def written(path: Path) -> dict[str, bytes]:
    """Each tensor's bytes by name."""
    checkpoint = open_checkpoint(path)
    found = {}
    for name, tensor in checkpoint.tensors.items():
        raw = checkpoint.shards[tensor.shard].path.read_bytes()
        found[name] = raw[tensor.offset : tensor.offset + tensor.nbytes]
    return found


def expected(family: Family, model: str, dtype: DType) -> dict[str, bytes]:
    """aligned − base in float32, then one rounding."""
    found = {}
    for name in FLOATING:
        delta = (family.wide(model, name) - family.wide("base", name)).astype(np.float32)
        found[name] = (bf16(delta) if dtype is BF16 else delta).tobytes()
    return found


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("model", ["one", "two"])
@pytest.mark.parametrize("out", ["av", "av.safetensors"])
def test_extract_from_shards(
    sharded_family: Family, tmp_path: Path, out: str, model: str, dtype: DType
) -> None:
    aligned = getattr(sharded_family, model)
    report = extract(
        plan_extract(str(sharded_family.base), str(aligned), tmp_path / out, dtype=dtype)
    )
    values = expected(sharded_family, model, dtype)
    assert written(tmp_path / out) == values
    assert (report.tensors, report.elements) == (6, 37 * 16 + 1031 + 16 * 17 + 5 * 3 + 1)
    for shard in open_checkpoint(tmp_path / out).shards:
        assert (shard.metadata["avops.kind"], shard.metadata["format"]) == ("delta", "pt")


def test_extract_of_a_file(family: Family, tmp_path: Path) -> None:
    extract(plan_extract(str(family.base), str(family.two), tmp_path / "av.safetensors"))
    assert written(tmp_path / "av.safetensors") == expected(family, "two", F32)
    vector = open_vector("x", tmp_path / "av.safetensors")
    assert vector.base_fingerprint == fingerprint(open_base(str(family.base)))


def test_checkpoints_that_do_not_fit_are_refused(save: Save, tmp_path: Path) -> None:
    base = save("base.safetensors", {"w": np.zeros((4, 3), np.float32)})
    aligned = save("aligned.safetensors", {"w": np.zeros((5, 3), np.float32)})
    with pytest.raises(MismatchError, match=r"'w' has shape \[5, 3\], but .* has \[4, 3\]"):
        plan_extract(str(base), str(aligned), tmp_path / "av.safetensors")


def test_a_difference_that_is_infinite_is_refused(save: Save, tmp_path: Path) -> None:
    base = save("base.safetensors", {"w": np.float32([1, -3e38])})
    aligned = save("aligned.safetensors", {"w": np.float32([2, 3e38])})
    plan = plan_extract(str(base), str(aligned), tmp_path / "av.safetensors")
    with pytest.raises(NonFiniteError, match="'w'"):
        extract(plan)
    assert not (tmp_path / "av.safetensors").exists()


def test_a_shard_without_floating_tensors_is_left_out(
    sharded_family: Family, tmp_path: Path
) -> None:
    out = tmp_path / "av"
    extract(plan_extract(str(sharded_family.base), str(sharded_family.two), out))
    files = ["model-00001-of-00003.safetensors", "model-00003-of-00003.safetensors"]
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert sorted(os.listdir(out)) == [RECIPE_NAME, *files, "model.safetensors.index.json"]
    assert sorted(set(index["weight_map"].values())) == files
    assert sorted(index["weight_map"]) == list(FLOATING)
    assert index["metadata"]["total_size"] == 4 * (37 * 16 + 1031 + 16 * 17 + 5 * 3 + 1)


def adapter_deltas(family: Family, directory: Path) -> dict[str, np.ndarray]:
    """Differences of the adapter in ``directory``, in float32."""
    vector = open_vector("x", directory)
    found = {}
    for name, part in vector.parts.items():
        if isinstance(part, LowRank):
            found[name] = delta(vector, part)
        else:
            whole = wide(vector, part.tensor)
            found[name] = (whole - family.wide("base", name)).astype(np.float32)
    return found


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize(
    ("layout", "out"), [("family", "av.safetensors"), ("sharded_family", "av")]
)
def test_extract_from_an_adapter(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    layout: str,
    out: str,
    whole: bool,
    dtype: DType,
) -> None:
    """Only what the adapter changes is written, and the file says that the rest is zero."""
    family: Family = request.getfixturevalue(layout)
    adapter = family_adapter(tmp_path / "adapter", whole=whole)
    report = extract(plan_extract(str(family.base), str(adapter), tmp_path / out, dtype=dtype))
    values = adapter_deltas(family, adapter)
    assert set(values) == {"model.embed.weight", "model.router.weight"}
    rounded = {n: bf16(v) if dtype is BF16 else v for n, v in values.items()}
    assert written(tmp_path / out) == {n: v.tobytes() for n, v in rounded.items()}
    assert (report.tensors, report.elements, report.zeros) == (2, 37 * 16 + 5 * 3, 0)
    vector = open_vector("x", tmp_path / out)
    assert (vector.kind, vector.partial) == ("delta", True)
    check_vector(open_checkpoint(family.base), vector)


def test_extract_of_a_delta_file(family: Family, tmp_path: Path) -> None:
    out = tmp_path / "av.safetensors"
    extract(plan_extract(str(family.base), str(family.two), out))
    with pytest.raises(CheckpointError, match="already an alignment vector, expected an aligned"):
        plan_extract(str(family.base), str(out), tmp_path / "more.safetensors")
