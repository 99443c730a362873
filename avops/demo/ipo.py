"""IPO: aligning the base once per domain, or for safety.

Loss per pair: (m − 1/(2β))², where m = (log π/π_ref of the chosen) − (log π/π_ref of the rejected),
each a mean over the response's tokens. Source: Azar et al., A General Theoretical Paradigm to
Understand Learning from Human Preferences, arXiv 2310.12036, equation 17; the mean over tokens,
β = 0.1 and the order expert > generic > avoidance as in arXiv 2410.19206.

Training stops far below the loss's target of 1/(2β) = 5 nats a token: reaching it would push the
aligned model out of the region in which θ(λ) still writes language.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from avops.demo.train import Chat, Progress, response_logprobs

if TYPE_CHECKING:
    import random

    import torch


@dataclass(frozen=True)
class Alignment:
    """How a domain is aligned.

    steps: optimiser steps. queries: queries in one step, each with its pairs. lr: constant.
    weights: in the loss, of the pairs of neighbouring levels: expert > generic, then generic >
    avoidance; one weight for chosen > rejected.
    """

    steps: int
    queries: int
    lr: float
    weights: tuple[float, ...] = (1.0, 1.0)
    beta: float = 0.1


def ipo_loss(
    chosen: torch.Tensor, rejected: torch.Tensor, weights: torch.Tensor, beta: float
) -> torch.Tensor:
    """Weighted mean of (chosen − rejected − 1/(2β))² over pairs.

    chosen, rejected: mean-token log-ratios log π − log π_ref, one per pair; differentiable.
    """
    errors = (chosen - rejected - 1 / (2 * beta)) ** 2
    return (weights * errors).sum() / weights.sum()


def mean_logprobs(model: Any, chats: Sequence[Chat]) -> torch.Tensor:
    """Mean response-token log-prob per chat, end-of-turn token included."""
    import torch

    logprobs, owner = response_logprobs(model, chats)
    total = torch.zeros(len(chats)).index_add(0, owner, logprobs)
    return total / torch.bincount(owner, minlength=len(chats))


def align(
    model: Any,
    ranked: Sequence[Sequence[Chat]],
    settings: Alignment,
    rng: random.Random,
    progress: Progress | None = None,
) -> float:
    """Align ``model`` in place on ranked responses; returns the last step's mean margin (nats).

    ranked: per query its chats from best to worst (expert, generic, avoidance). Neighbours make
    pairs, so a response shared by two pairs runs once. The reference is the model as given.
    """
    import torch

    picks = _picks(len(ranked), settings, rng)
    reference = _reference(model, ranked, sorted({i for pick in picks for i in pick}))
    optimiser = torch.optim.AdamW(model.parameters(), lr=settings.lr, weight_decay=0.0, fused=True)
    levels = len(ranked[0])
    weights = torch.tensor(settings.weights).expand(settings.queries, levels - 1)
    margin = 0.0
    model.train()
    for step, pick in enumerate(picks):
        policy = mean_logprobs(model, [chat for i in pick for chat in ranked[i]])
        ratio = policy.view(-1, levels) - torch.stack([reference[i] for i in pick])
        loss = ipo_loss(ratio[:, :-1], ratio[:, 1:], weights, settings.beta)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        margin = (ratio[:, :-1] - ratio[:, 1:]).mean().item()
        if progress:
            progress(step + 1, settings.steps, f"margin {margin:.2f}")
    model.eval()
    return margin


def _picks(queries: int, settings: Alignment, rng: random.Random) -> list[list[int]]:
    """The queries of each step; every pass visits each query once."""
    flat: list[int] = []
    while len(flat) < settings.steps * settings.queries:
        flat += rng.sample(range(queries), queries)
    return [flat[k * settings.queries : (k + 1) * settings.queries] for k in range(settings.steps)]


def _reference(
    model: Any, ranked: Sequence[Sequence[Chat]], used: Sequence[int]
) -> dict[int, torch.Tensor]:
    """Reference log-probs of the queries that will be used, one row per query."""
    import torch

    model.eval()
    out: dict[int, torch.Tensor] = {}
    with torch.inference_mode():
        for k in range(0, len(used), 16):
            part = used[k : k + 16]
            values = mean_logprobs(model, [chat for i in part for chat in ranked[i]])
            out |= dict(zip(part, values.view(len(part), -1).clone(), strict=True))
    return out
