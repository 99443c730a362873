"""Models to merge: Mistral's proportions, random bf16 weights, several shards.

One block of random weights is made per model and laid end to end from a new place for every piece
of a tensor: quick to make, and no two tensors are alike. Weights have a standard deviation of 0.02,
and the aligned models differ from the base by 1e-3 of noise of their own.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from avops.dtypes import BF16, F32
from avops.kernels import Operand, Term, combine

LAMS = ("-1", "-1", ".6", ".3", "-.2", ".7", "-.5", ".1")
VOCAB, KV_SHARE, FFN_SHARE, HEAD = 32000, 4, 3.5, 128
_BLOCK = 1 << 22  # elements
_STRIDE = 1_000_003  # prime: the places in the block repeat late


Tensors = list[tuple[str, tuple[int, ...]]]


def elements(shape: tuple[int, ...]) -> int:
    return math.prod(shape)


@dataclass(frozen=True)
class Model:
    """Shapes of a Mistral of about ``mib`` MiB: its width goes with its size."""

    hidden: int
    layers: int
    vocab: int = VOCAB

    @classmethod
    def of(cls, mib: int) -> Model:
        hidden = 1024 if mib < 1024 else 2048 if mib < 6144 else 4096
        layer = sum(elements(shape) for _, shape in Model(hidden, 1).layer(0))
        return cls(hidden, max(1, round((mib * 2**19 - 2 * VOCAB * hidden) / layer)))

    def layer(self, number: int) -> Tensors:
        hidden, kv, ffn = self.hidden, self.hidden // KV_SHARE, int(self.hidden * FFN_SHARE)
        shapes = {
            "input_layernorm": (hidden,),
            "mlp.down_proj": (hidden, ffn),
            "mlp.gate_proj": (ffn, hidden),
            "mlp.up_proj": (ffn, hidden),
            "post_attention_layernorm": (hidden,),
            "self_attn.k_proj": (kv, hidden),
            "self_attn.o_proj": (hidden, hidden),
            "self_attn.q_proj": (hidden, hidden),
            "self_attn.v_proj": (kv, hidden),
        }
        return [(f"model.layers.{number}.{name}.weight", s) for name, s in shapes.items()]

    def tensors(self) -> Tensors:
        ends = (self.vocab, self.hidden)
        layers = [tensor for number in range(self.layers) for tensor in self.layer(number)]
        norm = ("model.norm.weight", (self.hidden,))
        return [("model.embed_tokens.weight", ends), *layers, norm, ("lm_head.weight", ends)]

    @property
    def nbytes(self) -> int:
        return 2 * sum(elements(shape) for _, shape in self.tensors())

    def config(self) -> dict[str, object]:
        return {
            "architectures": ["MistralForCausalLM"],
            "model_type": "mistral",
            "vocab_size": self.vocab,
            "hidden_size": self.hidden,
            "intermediate_size": int(self.hidden * FFN_SHARE),
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.hidden // HEAD,
            "num_key_value_heads": self.hidden // KV_SHARE // HEAD,
            "head_dim": HEAD,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
        }

    def shards(self) -> Iterator[Tensors]:
        """At least four, and at most 2 GiB each (or one tensor)."""
        limit = min(2**31, self.nbytes // 4 + 1)
        shard: Tensors = []
        for name, shape in self.tensors():
            size = 2 * sum(elements(s) for _, s in [*shard, (name, shape)])
            if shard and size > limit:
                yield shard
                shard = []
            shard.append((name, shape))
        yield shard


def make(directory: Path, model: Model, terms: int) -> tuple[Path, list[Path]]:
    """Write the base and ``terms`` aligned checkpoints, and flush them. Returns their paths."""
    origin = _bf16(np.random.default_rng(0).standard_normal(_BLOCK, np.float32), 0.02)
    paths = [directory / name for name in ("base", *(f"aligned-{i + 1}" for i in range(terms)))]
    for seed, path in enumerate(paths):
        noise = np.random.default_rng(seed).standard_normal(_BLOCK, np.float32)
        write_shards(path, model, _random(origin, noise * np.float32(1e-3) if seed else None))
    return paths[0], paths[1:]


def _header(tensors: Tensors, note: str) -> bytes:
    """As the safetensors package writes it, padded to 8 bytes only: data begins anywhere in a page.

    The note gives each model a header of its own length.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt", "note": note}}
    end = 0
    for name, shape in tensors:
        start, end = end, end + 2 * elements(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _bf16(values: np.ndarray, scale: float) -> np.ndarray:
    found = np.empty(values.size, np.uint16)
    zero = np.zeros(values.size, np.float32)
    whole = Operand(values * np.float32(scale), F32)
    combine(Operand(zero, F32), [Term(whole, 1.0, aligned=False)], Operand(found, BF16))
    return found


def _random(
    origin: np.ndarray, noise: np.ndarray | None
) -> Callable[[BinaryIO, tuple[int, ...]], None]:
    """What writes one tensor after the other: the base's weights, and ``noise`` on top."""
    out = np.empty(_BLOCK, np.uint16)
    place = 0

    def write(file: BinaryIO, shape: tuple[int, ...]) -> None:
        nonlocal place
        left = elements(shape)
        while left:
            start, noisy = place * _STRIDE % _BLOCK, place * 7 * _STRIDE % _BLOCK
            count = min(left, _BLOCK - max(start, noisy))
            part = origin[start : start + count]
            if noise is not None:
                delta = Term(Operand(noise[noisy : noisy + count], F32), 1.0, aligned=False)
                combine(Operand(part, BF16), [delta], Operand(out[:count], BF16))
                part = out[:count]
            file.write(part.data)
            place, left = place + 1, left - count

    return write


def write_shards(
    path: Path, model: Model, write: Callable[[BinaryIO, tuple[int, ...]], None]
) -> None:
    """A checkpoint in the directory ``path``, its tensors by ``write``, all flushed."""
    path.mkdir()
    (path / "config.json").write_text(json.dumps(model.config(), indent=2) + "\n")
    shards = list(model.shards())
    weight_map = {}
    for number, tensors in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        weight_map.update({tensor: name for tensor, _ in tensors})
        with (path / name).open("wb") as file:
            file.write(_header(tensors, path.name))
            for _, shape in tensors:
                write(file, shape)
            file.flush()
            os.fsync(file.fileno())
    index = {"metadata": {"total_size": model.nbytes}, "weight_map": weight_map}
    (path / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
