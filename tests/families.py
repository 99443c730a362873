"""Small checkpoints with awkward tensors, and the contract spelled out in numpy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bits import bf16, from_bf16

Save = Callable[..., Path]


@dataclass(frozen=True)
class Family:
    """A base and two aligned checkpoints: their files and their tensors (bf16 as uint16)."""

    base: Path
    one: Path
    two: Path
    tensors: dict[str, dict[str, np.ndarray]]

    def wide(self, model: str, name: str) -> np.ndarray:
        """A tensor in float32."""
        array = self.tensors[model][name]
        return from_bf16(array) if array.dtype == np.uint16 else array.astype(np.float32)

    def expected(self, name: str, terms: list[tuple[str, float]]) -> np.ndarray:
        """The contract, spelled out: deltas first, base last, one rounding."""
        base = self.wide("base", name)
        total: np.ndarray | None = None
        for model, lam in terms:
            delta = (self.wide(model, name) - base).astype(np.float32)
            product = (np.float32(lam) * delta).astype(np.float32)
            total = product if total is None else (total + product).astype(np.float32)
        wide = base if total is None else (base + total).astype(np.float32)
        stored = self.tensors["base"][name]
        return bf16(wide) if stored.dtype == np.uint16 else wide.astype(stored.dtype)


def make_tensors(seed: int) -> dict[str, dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    shapes = {
        "model.embed.weight": ((37, 16), "bf16"),
        "model.layers.0.w": ((1031,), "bf16"),
        "model.layers.1.w": ((16, 17), "f16"),
        "model.router.weight": ((5, 3), "f32"),
        "model.scale": ((), "bf16"),
        "model.empty": ((0, 4), "bf16"),
    }
    models: dict[str, dict[str, np.ndarray]] = {"base": {}, "one": {}, "two": {}}
    for name, (shape, kind) in shapes.items():
        start = rng.standard_normal(shape).astype(np.float32)
        for model, step in (("base", 0.0), ("one", 0.02), ("two", 0.1)):
            wide = start + np.float32(step) * rng.standard_normal(shape).astype(np.float32)
            wide = np.asarray(wide, np.float32)
            stored = {"bf16": bf16, "f16": lambda x: x.astype(np.float16), "f32": np.copy}[kind]
            models[model][name] = stored(wide)
    for tensors in models.values():
        tensors["model.ids"] = np.arange(7, dtype=np.int64)
        tensors["model.mask"] = np.array([True, False, True])
    return models
