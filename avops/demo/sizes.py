"""The sizes of the small world: every number of its recipe, in one place.

The recipe was chosen by looking at validation items of seeds 101 to 108. Raise VERSION with any
change to the data or the training, so that older directories are not taken for the new world.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from avops.demo.grammar import Mixture
from avops.demo.ipo import Alignment
from avops.demo.train import Schedule

VERSION = 1


@dataclass(frozen=True)
class ChatSize:
    """Safety and helpfulness in a world.

    examples: in the base's corpus, half of each kind. alignment: for safety. pairs: of each kind in
    the train, validation and test splits.
    """

    examples: int
    alignment: Alignment
    pairs: dict[str, int]


@dataclass(frozen=True)
class Size:
    """hidden, layers, ffn: of the Mistral architecture, with 4 heads and 2 key-value heads.

    vocabulary: tokens. spread: standard deviation of the initial weights. items: per domain in the
    train, validation and test splits; the train items are the preference data. chat: the safety and
    helpfulness part, None without one.
    """

    hidden: int
    layers: int
    ffn: int
    mixture: Mixture
    schedule: Schedule
    alignment: Alignment
    items: dict[str, int]
    vocabulary: int = 1280
    spread: float = 0.02
    chat: ChatSize | None = None

    def config(self, vocabulary: int) -> dict[str, Any]:
        """The model's config.json."""
        return {
            "model_type": "mistral",
            "architectures": ["MistralForCausalLM"],
            "dtype": "float32",
            "vocab_size": vocabulary,
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "intermediate_size": self.ffn,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": self.hidden // 4,
            "max_position_embeddings": 256,
            "sliding_window": None,
            "tie_word_embeddings": False,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
        }


SIZES: dict[str, Size] = {
    "tiny": Size(
        hidden=48,
        layers=2,
        ffn=128,
        mixture=Mixture(6000, declined=0.14, shares=(0.64, 0.34, 0.02), mixed=0.15, swap=0.35),
        schedule=Schedule(steps=500, batch=12, lr=3e-3),
        alignment=Alignment(steps=30, queries=8, lr=2e-4, weights=(1.3, 1.0)),
        items={"train": 240, "validation": 24, "test": 48},
    ),
    "small": Size(
        hidden=64,
        layers=3,
        ffn=176,
        mixture=Mixture(7200, declined=0.14, shares=(0.64, 0.34, 0.02), mixed=0.15, swap=0.35),
        schedule=Schedule(steps=600, batch=12, lr=3e-3),
        alignment=Alignment(steps=30, queries=12, lr=1.2e-4, weights=(1.7, 1.0)),
        items={"train": 320, "validation": 60, "test": 60},
    ),
    "full": Size(
        hidden=64,
        layers=3,
        ffn=176,
        mixture=Mixture(7200, declined=0.14, shares=(0.64, 0.34, 0.02), mixed=0.15, swap=0.35),
        schedule=Schedule(steps=720, batch=12, lr=3e-3),
        alignment=Alignment(steps=30, queries=12, lr=1.2e-4, weights=(1.7, 1.0)),
        items={"train": 320, "validation": 60, "test": 60},
        chat=ChatSize(
            examples=1440,
            alignment=Alignment(steps=20, queries=12, lr=1.2e-4, weights=(1.0,)),
            pairs={"train": 240, "validation": 60, "test": 60},
        ),
    ),
}
