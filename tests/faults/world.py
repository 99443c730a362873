"""Small models, what to merge of them, and how to compare outputs."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from avops.disk import write_checkpoint
from avops.dtypes import BF16, DTYPES, F16, F32
from bits import bf16

TYPES = {"a": (BF16, 700), "b": (F16, 301), "c": (F32, 123), "ids": (DTYPES["I64"], 9)}
SHARDS = (("a", "ids"), ("b", "c"))


@dataclass(frozen=True)
class World:
    """Models and how to merge them. Each comes as a file and as a directory of two shards."""

    directory: Path

    def scenario(
        self, *outs: Path, lams: tuple[float, ...] = (0.5,), **more: Any
    ) -> dict[str, Any]:
        """A merge into ``outs``, one candidate for each; the k-th has λ lams[k] and −0.25."""
        suffix = ".safetensors" if outs[0].suffix else ""
        return {
            "base": str(self.directory / f"base{suffix}"),
            "avs": {n: str(self.directory / f"{n}{suffix}") for n in ("one", "two")},
            "outs": [
                [{"one": lam, "two": -0.25}, str(out)] for lam, out in zip(lams, outs, strict=True)
            ],
            "block": 1536,
            **more,
        }

    def argv(self, out: Path, *flags: str, lam: float = 0.5) -> list[str]:
        """The same merge as a command line."""
        found = self.scenario(out)
        avs = found["avs"]
        terms = [f"{avs['one']}:{lam}", f"{avs['two']}:-.25"]
        return ["merge", found["base"], "--av", *terms, "-o", str(out), *flags]


def _tensors(name: str, scale: int) -> dict[str, tuple[Any, np.ndarray]]:
    """The same start for every model, moved by the model's own step."""
    start, step = np.random.default_rng(0), np.random.default_rng(len(name) + ord(name[0]))
    found = {}
    for tensor, (dtype, count) in TYPES.items():
        values = start.standard_normal(count * scale, np.float32)
        values += np.float32(0.1) * step.standard_normal(count * scale, np.float32)
        if dtype == BF16:
            found[tensor] = (dtype, bf16(values))
        elif tensor == "ids":
            found[tensor] = (dtype, np.arange(count * scale, dtype="<i8"))
        else:
            found[tensor] = (dtype, values.astype(dtype.storage))
    return found


def make_world(directory: Path, scale: int = 1) -> World:
    """Models in ``directory``; their tensors are ``scale`` times 3 kB."""
    directory.mkdir(parents=True, exist_ok=True)
    for model in ("base", "one", "two"):
        tensors = _tensors(model, scale)
        write_checkpoint(directory / f"{model}.safetensors", tensors)
        weight_map = {}
        for number, names in enumerate(SHARDS, 1):
            file = f"model-{number:05d}-of-{len(SHARDS):05d}.safetensors"
            write_checkpoint(directory / model / file, {name: tensors[name] for name in names})
            weight_map.update(dict.fromkeys(names, file))
        index = {"metadata": {}, "weight_map": weight_map}
        (directory / model / "model.safetensors.index.json").write_text(json.dumps(index))
    (directory / "base/config.json").write_text('{"model_type": "x"}')
    (directory / "base/tokenizer.json").write_text('{"odd":  "spacing"}')
    return World(directory)


def companion(target: Path) -> Path:
    """Where the recipe of a file output is."""
    return target.with_suffix(".avops_recipe.json")


def tree(target: Path) -> dict[str, str]:
    """SHA-256 of an output's every file, by name; a file output's with its recipe."""
    if target.is_dir():
        files = {path.relative_to(target).as_posix(): path for path in target.rglob("*")}
    else:
        files = {path.name: path for path in (target, companion(target))}
    return {
        name: hashlib.sha256(path.read_bytes()).hexdigest()
        for name, path in sorted(files.items())
        if path.is_file()
    }


def stages(target: Path) -> list[Path]:
    """Staging directories beside the target."""
    return sorted(target.parent.glob(f".{target.name}.avops-*"))


def journaled(target: Path) -> int:
    """Windows in the journal that a killed run left: its whole lines, but for the first."""
    return sum(
        max(0, (stage / "avops-journal").read_bytes().count(b"\n") - 1)
        for stage in stages(target)
        if (stage / "avops-journal").exists()
    )
