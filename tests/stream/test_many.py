"""Models of very many tensors: what is done for each does not grow with their number."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adapters import CONFIG
from avops.disk import open_checkpoint, open_vector
from avops.errors import MismatchError
from avops.recipe import Recipe, Source
from avops.recipe.terms import Term
from avops.stream import inspect as inspection
from avops.stream import inspect_vectors, plan_merge
from avops.stream.compare import compare
from avops.stream.verify import verify

FEW = 1500
TIMES = 4
# Four times the tensors take four times as long in proportion, and sixteen times if each is held
# against all others: the bound is halfway, 4^1.5.
BOUND = 8


def write(path: Path, names: list[str], shape: tuple[int, ...], values: np.ndarray) -> None:
    size, at, table = values[0].nbytes, 0, {}
    for name in names:
        table[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(table, separators=(",", ":")).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + values.tobytes())


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """For two numbers of experts a base of four shards, an aligned one of it, and a LoRA."""
    made = {}
    for count in (FEW, FEW * TIMES):
        root = made[count] = tmp_path_factory.mktemp(f"m{count}")
        names = [f"layers.{i % 7}.experts.{i}.up.weight" for i in range(count)]
        rng = np.random.default_rng(0)
        for model in ("base", "aligned"):
            (root / model).mkdir()
            files = {}
            for shard in range(4):
                mine = names[shard::4]
                file = f"model-{shard}.safetensors"
                values = rng.standard_normal((len(mine), 4)).astype(np.float32)
                write(root / model / file, mine, (2, 2), values)
                files.update(dict.fromkeys(mine, file))
            index = {"metadata": {}, "weight_map": files}
            (root / model / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
        other = [name.replace("up", "upp") for name in names]
        write(root / "renamed.safetensors", other, (2, 2), values[:1].repeat(count, axis=0))
        (root / "lora").mkdir()
        factors = [
            f"base_model.model.{name.removesuffix('.weight')}.lora_{side}.weight"
            for name in names
            for side in "AB"
        ]
        values = rng.standard_normal((len(factors), 4)).astype(np.float32)
        write(root / "lora" / "adapter_model.safetensors", factors, (2, 2), values)
        (root / "lora" / "adapter_config.json").write_text(json.dumps(CONFIG))
    return made


def plan(root: Path, av: str = "aligned") -> None:
    term = Term(Source("x", str(root / av)), 0.5, "0.5")
    planned = plan_merge(Recipe(str(root / "base"), (term,)), root / "out")
    assert len(planned.changed) == len(planned.plan.segments)


def measure(root: Path) -> None:
    seen = []
    vector, base = open_vector("x", root / "aligned"), open_checkpoint(root / "base")
    inspect_vectors([vector], base, lambda done, total: seen.append((done, total)))
    assert seen[-1] == (4 * len(seen), 4 * len(seen))
    assert len({total for _, total in seen}) == 1


def refuse(root: Path) -> None:
    """The nearest name is searched among all."""
    vector = open_vector("x", root / "renamed.safetensors")
    with pytest.raises(MismatchError, match=r"nearest name there: 'layers.0.experts.0.upp.weight'"):
        inspect_vectors([vector], open_checkpoint(root / "base"))


VERBS: dict[str, Callable[[Path], object]] = {
    "plan": plan,
    "plan an adapter": lambda root: plan(root, "lora"),
    "inspect": measure,
    "refuse": refuse,
    "diff": lambda root: compare(root / "base", root / "aligned", threads=1),
    "verify": lambda root: verify(root / "base", threads=1),
}


@pytest.mark.parametrize("verb", VERBS)
def test_time_in_proportion(models: dict[int, Path], verb: str) -> None:
    def seconds(count: int) -> float:
        start = time.process_time()
        VERBS[verb](models[count])
        return time.process_time() - start

    seconds(FEW)  # What is imported or made once.
    few = min(seconds(FEW) for _ in range(2))
    assert min(seconds(FEW * TIMES) for _ in range(2)) < BOUND * few


def test_progress_does_not_add_up_all_tensors_for_each(
    models: dict[int, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which is the square of their number, of so small a thing that seconds hardly show it."""
    sums = []

    class Counts(dict[str, int]):
        def values(self) -> Any:
            sums.append(1)
            return super().values()

    made = inspection._floating_names
    monkeypatch.setattr(inspection, "_floating_names", lambda *given: Counts(made(*given)))
    measure(models[FEW])
    assert len(sums) == 1
