"""A small module with what models have, its checkpoints, and what `avops merge` makes of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from adapters import save_by_hand
from avops.recipe import Recipe, Sources, apply_rules, parse_skip, parse_terms, parse_where
from avops.stream import MergeOptions, extract, merge, plan_extract, plan_merge

DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}
LAMS = {"med": 0.5, "fin": -1.25, "low": 0.7}


class Toy(torch.nn.Module):
    """Embedding, two matrices, a norm, a head that may be tied, and buffers."""

    def __init__(self, *, tied: bool = False) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(37, 16)
        self.layers = torch.nn.ModuleList([torch.nn.Linear(16, 24), torch.nn.Linear(24, 16)])
        self.norm = torch.nn.LayerNorm(16)
        self.head = torch.nn.Linear(16, 37, bias=False)
        if tied:
            self.head.weight = self.embed.weight
        self.register_buffer("scale", torch.tensor(1.5))
        self.register_buffer("ids", torch.arange(5))
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.embed(x) * self.scale
        hidden = hidden + self.layers[1](torch.relu(self.layers[0](hidden)))
        out: torch.Tensor = self.head(self.norm(hidden))
        return out


@dataclass(frozen=True)
class World:
    """A base and its alignment vectors: med a delta file, fin aligned, low a LoRA adapter."""

    directory: Path
    base: Path
    avs: dict[str, Path]
    dtype: torch.dtype

    def model(self, dtype: torch.dtype | None = None, *, tied: bool = False) -> Toy:
        """A model whose weights are nothing yet."""
        model = Toy(tied=tied).to(dtype or self.dtype)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(7)
        return model

    def merged(
        self,
        lams: Mapping[str, object],
        *,
        where: Sequence[str] = (),
        skip: Sequence[str] = (),
        options: MergeOptions | None = None,
    ) -> dict[str, torch.Tensor]:
        """What `avops merge` writes for the recipe."""
        specs = [f"{self.avs[name]}:{lam}" for name, lam in lams.items()]
        terms = parse_terms(specs, Sources({}, lambda path: Path(path).exists()))
        rules = [parse_where(text) for text in where] + [(None, parse_skip(g)) for g in skip]
        names = {name: str(path) for name, path in self.avs.items()}
        rules = [(names.get(name or "", name), rule) for name, rule in rules]
        number = len(list(self.directory.glob("merged*")))
        ending = "" if self.base.is_dir() else ".safetensors"
        out = self.directory / f"merged{number}{ending}"
        recipe = Recipe(str(self.base), apply_rules(terms, rules))
        merge(plan_merge(recipe, out, options or MergeOptions()))
        files = sorted(out.glob("*.safetensors")) if out.is_dir() else [out]
        return {name: tensor for file in files for name, tensor in load_file(file).items()}


def make(
    directory: Path, kind: str = "bf16", *, shards: int = 1, tied: bool = False, seed: int = 0
) -> World:
    """A world in ``directory``. tied: the files hold no head."""
    torch.manual_seed(seed)
    dtype = DTYPES[kind]
    start = {
        name: tensor.clone() if tensor.dtype == torch.int64 else torch.randn(tensor.shape).to(dtype)
        for name, tensor in Toy().state_dict().items()
        if not (tied and name == "head.weight")
    }
    moved = {
        who: {
            name: tensor
            if tensor.dtype == torch.int64
            else (tensor.float() + step * torch.randn(tensor.shape)).to(dtype)
            for name, tensor in start.items()
        }
        for who, step in (("med", 0.01), ("fin", 0.1))
    }
    base = write(directory / "base", start, shards)
    fin = write(directory / "fin", moved["fin"], shards)
    aligned = write(directory / "aligned-med", moved["med"], 1)
    med = directory / "med.safetensors"
    extract(plan_extract(str(base), str(aligned), med))
    rng = np.random.default_rng(seed)
    factors = {
        "embed.lora_embedding_A": (3, 37),
        "embed.lora_embedding_B": (16, 3),
        "layers.0.lora_A.weight": (3, 16),
        "layers.0.lora_B.weight": (24, 3),
    }
    draw = {n: rng.standard_normal(s).astype(np.float32) for n, s in factors.items()}
    low = save_by_hand(directory / "low", draw, {"r": 3})
    return World(directory, base, {"med": med, "fin": fin, "low": low}, dtype)


def write(path: Path, tensors: Mapping[str, torch.Tensor], shards: int) -> Path:
    """A file, or a directory of ``shards`` files."""
    if shards == 1:
        path = path.with_suffix(".safetensors")
        save_file(dict(tensors), path, {"format": "pt"})
        return path
    path.mkdir(parents=True)
    weight_map = {}
    for number in range(shards):
        name = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        mine = {n: t for k, (n, t) in enumerate(tensors.items()) if k % shards == number}
        save_file(mine, path / name, {"format": "pt"})
        weight_map |= dict.fromkeys(mine, name)
    index = {"metadata": {}, "weight_map": weight_map}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    return path


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes()


def differing(model: torch.nn.Module, expected: Mapping[str, torch.Tensor]) -> list[str]:
    """Names of the tensors whose bits are not ``expected``, widened to the model's dtype."""
    state = model.state_dict()
    return [
        name
        for name, tensor in expected.items()
        if bits(state[name]) != bits(tensor.to(state[name].dtype))
    ]
