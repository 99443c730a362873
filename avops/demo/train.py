"""Training the base model: next-token loss on responses, a plain loop.

Sequences are padded on the right and no mask is needed: attention is causal, so a real token never
sees the padding behind it, and only response tokens are scored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import random

    import torch

Chat = tuple[list[int], int]  # ids of the whole chat, index of the first response token
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Schedule:
    """How the base is trained. steps: optimiser steps; batch: chats in one; lr: its peak."""

    steps: int
    batch: int
    lr: float


def initialise(model: Any, seed: int, spread: float) -> None:
    """Draw weights from a generator of our own: normal(0, spread), norms at one.

    The scheme is ours, so that the start does not depend on the transformers version.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, weight in sorted(model.named_parameters()):
            if weight.ndim == 1:
                weight.fill_(1.0)
            else:
                weight.normal_(0.0, spread, generator=generator)


def response_logprobs(model: Any, chats: Sequence[Chat]) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs of every response token in ``chats``, and the chat each belongs to.

    The head runs on the rows that predict response tokens only.
    """
    import torch

    width = max(len(ids) for ids, _ in chats)
    batch = torch.zeros(len(chats), width, dtype=torch.long)
    scored = torch.zeros(len(chats), width - 1, dtype=torch.bool)
    for row, (ids, start) in enumerate(chats):
        batch[row, : len(ids)] = torch.tensor(ids)
        scored[row, start - 1 : len(ids) - 1] = True
    hidden = model.get_decoder()(input_ids=batch, use_cache=False).last_hidden_state
    logits = model.get_output_embeddings()(hidden[:, :-1][scored])
    logprobs = -torch.nn.functional.cross_entropy(logits, batch[:, 1:][scored], reduction="none")
    return logprobs, scored.nonzero()[:, 0]


def batches(chats: Sequence[Chat], schedule: Schedule, rng: random.Random) -> Iterator[list[Chat]]:
    """``schedule.steps`` batches of similar lengths; every pass visits each chat once."""
    made = 0
    while True:
        order = rng.sample(range(len(chats)), len(chats))
        groups = []
        window = schedule.batch * 32  # long enough to sort by length, short enough to stay mixed
        for first in range(0, len(order), window):
            part = sorted(order[first : first + window], key=lambda i: len(chats[i][0]))
            groups += [part[k : k + schedule.batch] for k in range(0, len(part), schedule.batch)]
        rng.shuffle(groups)
        for group in groups:
            if made == schedule.steps:
                return
            made += 1
            yield [chats[i] for i in group]


def train_base(
    model: Any,
    chats: Sequence[Chat],
    schedule: Schedule,
    rng: random.Random,
    progress: Progress | None = None,
) -> float:
    """Train ``model`` in place; returns the mean loss (nats per token) of the last tenth."""
    import torch

    model.train()
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=schedule.lr, betas=(0.9, 0.95), weight_decay=0.01, fused=True
    )
    losses = []
    for step, batch in enumerate(batches(chats, schedule, rng)):
        for group in optimiser.param_groups:
            group["lr"] = schedule.lr * _cosine(step, schedule.steps)
        logprobs, _ = response_logprobs(model, batch)
        loss = -logprobs.mean()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        losses.append(loss.item())
        if progress:
            progress(step + 1, schedule.steps, f"loss {losses[-1]:.2f}")
    model.eval()
    tail = losses[-max(1, len(losses) // 10) :]
    return math.fsum(tail) / len(tail)


def _cosine(step: int, steps: int) -> float:
    """Warm-up over the first twentieth, then a cosine down to zero."""
    warm = max(1, steps // 20)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))
