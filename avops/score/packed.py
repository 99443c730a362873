"""The packed path: trees of whole items side by side, each token of them computed once.

The model's own forward runs over all rows as one sequence, each with its position, and its
attention is replaced for the time of the run (``attention.py``). What a model must be for that is
asked of its class and config here, and of its results in ``check.py``.
"""

from __future__ import annotations

import inspect
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np

from avops.errors import MissingExtraError
from avops.score.attention import NAME, Layout, attending, tree_attention
from avops.score.fused import Fused

try:
    import torch
except ModuleNotFoundError as error:
    raise MissingExtraError(error.name or "torch", "score", "scoring") from error

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from avops.score.blocks import Block
    from avops.score.head import Head

LAYERS = frozenset({"full_attention", "sliding_attention"})
"""Kinds of layers, by the names of transformers' configs, that see a past by position alone."""


class PackedPath:
    """Scores blocks of one model."""

    name = "packed"

    def __init__(self, head: Head, blocks: Sequence[Block], *, fuse: bool = True) -> None:
        self.units = list(blocks)
        self.head = head
        self.fused = Fused(head.model) if fuse else None

    @contextmanager
    def session(self) -> Iterator[None]:
        """Within the context, the model's attention is the tree's, and known layers are fused."""
        from avops.score.model import attention

        fused = nullcontext() if self.fused is None else self.fused.session(tree_attention)
        with attention(self.head.model, NAME, tree_attention), fused:
            yield

    def score(self, block: Block) -> NDArray[np.float32]:
        """The log-prob of each of the block's slots."""
        values, _ = self.run(block)
        found: NDArray[np.float32] = values.cpu().numpy()[block.pairs]
        return found

    def run(self, block: Block) -> tuple[torch.Tensor, list[int | None]]:
        """The log-prob of each of the block's pairs, and the window that each layer asked for."""
        device = self.head.model.get_input_embeddings().weight.device
        ids, positions, rows, targets = (
            torch.from_numpy(part).to(device)
            for part in (
                block.tree.ids.astype("int64"),
                block.tree.positions,
                block.rows,
                block.targets,
            )
        )
        if self.fused is not None and self.fused.served:
            self.fused.rows = torch.from_numpy(np.unique(block.rows))
        layout = Layout(block.tree)
        with attending(layout):
            hidden = self.head.hidden(rows, input_ids=ids[None], position_ids=positions[None])
        return self.head.log_probs(hidden, targets), layout.windows


def why_not(model: Any, longest: int) -> str | None:
    """Why a model cannot be scored packed, by its class and config; None if it may.

    longest: the tokens of the longest sequence that is fed.
    """
    if not getattr(model, "_supports_attention_backend", False):
        return f"{type(model).__name__} does not go through transformers' AttentionInterface"
    taken = inspect.signature(model.forward).parameters
    # A wrapper, as of adapters, passes on what it does not know.
    if "position_ids" not in taken and not _passes_on(taken):
        return f"{type(model).__name__} takes no position_ids"
    config = model.config.get_text_config()
    if others := set(getattr(config, "layer_types", None) or ()) - LAYERS:
        return f"it has layers of type {', '.join(sorted(others))}"
    rope = getattr(config, "rope_parameters", None) or {}
    for settings in (rope, *rope.values()):
        kind = settings.get("rope_type") if isinstance(settings, dict) else None
        if kind == "longrope" or "dynamic" in (kind or ""):
            short = settings.get("original_max_position_embeddings")
            short = short or config.max_position_embeddings
            if longest > short:
                return (
                    f"its rotary positions ({kind}) depend on a sequence's length beyond {short} "
                    "tokens"
                )
    return None


def _passes_on(taken: Mapping[str, inspect.Parameter]) -> bool:
    return any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values())


def why_not_layers(config: Any, windows: Sequence[int | None], longest: int) -> str | None:
    """Why not, by what the layers of a model asked of the attention function."""
    layers = int(config.num_hidden_layers)
    if len(windows) != layers:
        return f"{len(windows)} of its {layers} layers go through the AttentionInterface"
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * layers
    for number, (kind, asked) in enumerate(zip(kinds, windows, strict=True)):
        wanted = window if kind == "sliding_attention" else None
        if asked != wanted and longest > min(w for w in (asked, wanted) if w is not None):
            return f"layer {number} asks for a window of {asked}, and its config says {wanted}"
    return None
