"""Merges with LoRA adapters, against numpy and against PEFT."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from adapters import bound, delta, family_adapter, llama, train, wide
from avops.disk import LowRank, open_vector
from avops.recipe import Recipe, Sources, parse_terms
from avops.stream import merge, plan_merge
from bits import bf16
from families import Family


def merged(base: Path, specs: list[str], out: Path) -> Path:
    terms = parse_terms(specs, Sources({}, lambda path: Path(path).exists()))
    merge(plan_merge(Recipe(str(base), terms), out))
    return out


@pytest.mark.parametrize("whole", [True, False])
def test_the_contract(family: Family, tmp_path: Path, whole: bool) -> None:
    """Base + (λ₁·Δ₁ + λ₂·Δ₂), Δ₂ from the adapter in float32, and one rounding at the end."""
    directory = family_adapter(tmp_path / "a", whole=whole)
    out = merged(
        family.base, [f"{family.one}:0.3", f"{directory}:-0.7"], tmp_path / "o.safetensors"
    )
    vector = open_vector("x", directory)
    written = open_vector("o", out)
    for name in ("model.embed.weight", "model.router.weight", "model.layers.0.w"):
        base = family.wide("base", name)
        total = np.float32(0.3) * (family.wide("one", name) - base).astype(np.float32)
        part = vector.parts.get(name)
        if isinstance(part, LowRank):
            total = total + np.float32(-0.7) * delta(vector, part)
        elif part is not None:
            total = total + np.float32(-0.7) * (wide(vector, part.tensor) - base)
        expected = base + total
        stored = written.parts[name]
        assert not isinstance(stored, LowRank)
        found = wide(written, stored.tensor)
        rounded = bf16(expected) if stored.tensor.dtype.tag == "BF16" else expected
        assert found.tobytes() == wide_bits(rounded).tobytes(), name


def wide_bits(array: np.ndarray) -> np.ndarray:
    if array.dtype == np.uint16:
        return (array.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return array


def test_a_merge_at_one_is_pefts(tmp_path: Path) -> None:
    """The whole way: PEFT saves, avops merges, PEFT's own merge_and_unload is the truth."""
    pytest.importorskip("peft")
    config = {"target_modules": "all-linear", "r": 6, "lora_alpha": 16, "use_rslora": True}
    _, theirs = train(llama(), tmp_path, modules_to_save=["norm"], **config)
    out = merged(
        tmp_path / "base.safetensors", [f"{tmp_path / 'adapter'}:1"], tmp_path / "o.safetensors"
    )
    vector = open_vector("x", tmp_path / "adapter")
    ours, base = load_file(out), load_file(tmp_path / "base.safetensors")
    assert ours.keys() == theirs.keys() == base.keys()
    for name, found in ours.items():
        part, truth = vector.parts.get(name), theirs[name].numpy()
        if part is None:
            assert found.tobytes() == truth.tobytes() == base[name].tobytes(), name
        elif isinstance(part, LowRank):
            # Each Δ is within (r + 2) 2^-24 scale Σ|b||a| of exact, and the sum is rounded once.
            error = 2 * (part.rank + 2) * 2.0**-24 * bound(vector, part)
            close = np.abs(found.astype(np.float64) - truth) <= error + 2.0**-23 * np.abs(truth)
            assert close.all(), name
        else:
            # base + (aligned − base) in float32: the difference is rounded, then the sum.
            slack = 2.0**-23 * (np.abs(truth) + np.abs(base[name]))
            assert np.all(np.abs(found.astype(np.float64) - truth) <= slack), name
