"""Random modules with checkpoints, vectors, rules and options: what Knobs may meet, by a seed."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from adapters import save_by_hand
from avops.dtypes import BF16, F16, F32
from avops.stream import MergeOptions, extract, plan_extract
from knobs.toy import DTYPES, World, bits, write

MERGED = {torch.bfloat16: BF16, torch.float16: F16, torch.float32: F32}


@dataclass
class RandomWorld:
    """A model, its files, and options of Knobs. written: what merges wrote, by recipe and dtype."""

    model: torch.nn.Module
    world: World
    options: dict[str, object]
    names: tuple[str, ...]
    written: dict[object, dict[str, torch.Tensor]] = field(default_factory=dict)

    def merged(self, lams: Mapping[str, object], dtype: torch.dtype | None) -> object:
        """What `avops merge` writes, with --dtype if given."""
        key = (tuple(sorted((name, str(lam)) for name, lam in lams.items() if lam)), dtype)
        if key not in self.written:
            options = MergeOptions(
                rounding=str(self.options["rounding"]),  # type: ignore[arg-type]
                seed=int(str(self.options["seed"])),
                dtype=None if dtype is None else MERGED[dtype],
            )
            # Every dial is named, as rules may be about it; those that are 0 are dropped.
            recipe = {name: lams.get(name, 0) for name in self.names}
            self.written[key] = self.world.merged(
                recipe,
                where=self.options["where"],  # type: ignore[arg-type]
                skip=self.options["skip"],  # type: ignore[arg-type]
                options=options,
            )
        return self.written[key]

    def differing(self, lams: Mapping[str, object]) -> list[str]:
        """Names of tensors that are not what merge writes for the recipe."""
        state, wrong = self.model.state_dict(), []
        for name, stored in self.merged(lams, None).items():  # type: ignore[attr-defined]
            held = state[name]
            expected = stored
            if held.dtype not in (stored.dtype, torch.float32):
                expected = self.merged(lams, held.dtype)[name]  # type: ignore[index]
            if bits(held) != bits(expected.to(held.dtype)):
                wrong.append(name)
        return wrong


def make(directory: Path, seed: int) -> RandomWorld:
    """The world of ``seed``, written to ``directory``."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    kind = rng.choice(list(DTYPES))
    shapes = _shapes(rng)
    base = {
        name: _values(shape, DTYPES[kind if rng.random() < 0.8 else rng.choice(list(DTYPES))])
        for name, shape in shapes.items()
    }
    base["ids"] = torch.arange(3)
    shards = rng.choice([1, 1, 2, 3])
    path = write(directory / "base", base, shards)
    avs = _vectors(directory, path, base, shards, rng)
    world = World(directory, path, avs, DTYPES[kind])
    return RandomWorld(_model(base, rng), world, _options(rng, list(avs), list(shapes)), tuple(avs))


def _shapes(rng: random.Random) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"scale": ()}
    for number in range(rng.randint(1, 6)):
        sizes = (1, 2, 7, 8, 16, 24, 33, 40)
        rank = rng.choice([1, 2, 2, 2, 3])
        shapes[f"layers.{number}.weight"] = tuple(rng.choice(sizes) for _ in range(rank))
    if rng.random() < 0.2:
        shapes["empty"] = (0, 4)
    return shapes


def _values(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    return (torch.randn(shape) * 10 ** float(torch.randint(-3, 2, ()))).to(dtype)


def _vectors(
    directory: Path,
    base: Path,
    tensors: Mapping[str, torch.Tensor],
    shards: int,
    rng: random.Random,
) -> dict[str, Path]:
    """One to four vectors: aligned checkpoints, delta files, adapters."""
    found: dict[str, Path] = {}
    for number in range(rng.randint(1, 4)):
        name, kind = f"v{number}", rng.choice(["aligned", "delta", "low"])
        matrices = [n for n, t in tensors.items() if t.dim() == 2 and t.numel()]
        if kind == "low" and matrices:
            factors = {}
            chosen = rng.sample(matrices, rng.randint(1, len(matrices)))
            for matrix in chosen:
                rows, columns = tensors[matrix].shape
                rank, module = rng.randint(1, 4), matrix.removesuffix(".weight")
                draw = np.random.default_rng(rng.randrange(1 << 30)).standard_normal
                factors[f"{module}.lora_A.weight"] = draw((rank, columns)).astype(np.float32)
                factors[f"{module}.lora_B.weight"] = draw((rows, rank)).astype(np.float32)
            ranks = {
                key.removesuffix(".lora_A.weight"): array.shape[0]
                for key, array in factors.items()
                if key.endswith("lora_A.weight")
            }
            config = {"r": 2, "rank_pattern": ranks, "lora_alpha": rng.choice([1, 3, 8])}
            found[name] = save_by_hand(directory / name, factors, config)
            continue
        moved = {
            key: tensor
            if not tensor.is_floating_point()
            else (tensor.float() + rng.choice([0.0, 1e-3, 0.1]) * torch.randn(tensor.shape)).to(
                tensor.dtype
            )
            for key, tensor in tensors.items()
        }
        path = write(directory / name, moved, shards if kind == "aligned" else 1)
        if kind == "delta":
            out = directory / f"{name}-delta.safetensors"
            extract(plan_extract(str(base), str(path), out))
            path = out
        found[name] = path
    return found


def _options(rng: random.Random, avs: list[str], tensors: list[str]) -> dict[str, object]:
    where, skip = [], []
    while rng.random() < 0.4:
        owner = rng.choice(["", f"{rng.choice(avs)}:"])
        glob = rng.choice(["*", "layers.*", "layers.0.*", rng.choice(tensors)])
        where.append(f"{owner}{glob}={rng.choice(['.5', '1/3', '-2', '0', '1'])}")
    if rng.random() < 0.2:
        skip.append(rng.choice(["scale", "layers.0*"]))
    return {
        "rounding": rng.choice(["nearest", "dither"]),
        "seed": rng.randint(0, 5),
        "where": where,
        "skip": skip,
    }


def _model(base: Mapping[str, torch.Tensor], rng: random.Random) -> torch.nn.Module:
    """Parameters and buffers by the names of ``base``, in dtypes and memory of all kinds."""
    model = torch.nn.Module()
    wanted = rng.choice([None, None, torch.float32, *DTYPES.values()])
    for name, tensor in base.items():
        dtype = wanted or tensor.dtype
        if tensor.is_floating_point() and rng.random() < 0.15:
            dtype = rng.choice(list(DTYPES.values()))
        place, memory = model, tensor.clone()
        if tensor.is_floating_point():
            # Somewhere inside of other memory, which the device's kernels must not touch.
            lead = rng.choice([0, 0, 1, 3, 8])
            whole = torch.full((tensor.numel() + lead + 5,), 7, dtype=dtype)
            memory = whole[lead : lead + tensor.numel()].view(tensor.shape)
        *path, key = name.split(".")
        for step in path:
            if not hasattr(place, step):
                place.add_module(step, torch.nn.Module())
            place = getattr(place, step)
        if tensor.is_floating_point() and rng.random() < 0.8:
            grad = rng.random() < 0.5
            place.register_parameter(key, torch.nn.Parameter(memory, requires_grad=grad))
        else:
            place.register_buffer(key, memory)
    return model.eval()
