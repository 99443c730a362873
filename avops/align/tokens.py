"""Pairs as token ids: those of the scorer, so that training moves what is measured.

Both sequences of a pair are the chats that `avops score` reads, with the end-of-turn token once,
at the end. The loss is over the same tokens as the score.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from avops.align.preferences import Preferences
    from avops.score import TokenPlan


@dataclass(frozen=True)
class TokenPair:
    """Token ids of two whole chats, and where the response's tokens begin in each."""

    chosen: tuple[int, ...]
    chosen_start: int
    rejected: tuple[int, ...]
    rejected_start: int


def plan_of(preferences: Preferences, tokenizer: Any, template: str | None = None) -> TokenPlan:
    """The scorer's plan of the items. Raises DataError as ``encode`` does."""
    from avops.score import encode

    return encode(preferences.items, tokenizer, template=template)


def token_pairs(preferences: Preferences, plan: TokenPlan) -> list[TokenPair]:
    """Every pair's tokens, in the pairs' order."""
    columns = {level: column for column, level in enumerate(preferences.items.levels)}
    found = []
    for pair in preferences.pairs:
        (chosen, start), (rejected, other) = (
            (tuple(plan.sequence(pair.item, side).tolist()), int(plan.starts[pair.item, side]))
            for side in (columns[pair.chosen], columns[pair.rejected])
        )
        found.append(TokenPair(chosen, start, rejected, other))
    return found
