"""Blocks: whole items packed into one forward pass, cut from the plan alone.

A block is the unit of work, of caching and of resuming. It is decided by the plan and the token
budget, never by weights, λ, device or threads, and its hash says what it computes.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from avops.score.tree import SHARED_ROOT, Tree, common_length, grow

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from avops.score.plan import TokenPlan

FORMAT = b"avops block 1"


@dataclass(frozen=True, eq=False)
class Block:
    """One forward pass.

    items: the first item and the one after the last. tree: what is fed. rows and targets: int64,
    the distinct pairs of a row and the token that it predicts, by row; the row that several
    responses part from has a pair for each. slots: the block's range among all scored tokens of
    the plan. pairs: for each slot of that range, its pair.
    """

    items: tuple[int, int]
    tree: Tree
    rows: NDArray[np.int64]
    targets: NDArray[np.int64]
    slots: slice
    pairs: NDArray[np.int64]

    @property
    def tokens(self) -> int:
        """Tokens that are fed."""
        return self.tree.ids.size

    @cached_property
    def sha256(self) -> str:
        """Of everything that decides the block's log-probs but the model."""
        digest = hashlib.sha256(FORMAT)
        nodes = np.array(self.tree.nodes, "<i8")
        for part in (self.tree.ids, nodes, self.rows, self.targets, self.pairs):
            digest.update(np.int64(part.size).astype("<i8").tobytes())
            digest.update(part.astype("<i8").tobytes())
        return digest.hexdigest()


def cut_blocks(plan: TokenPlan, batch_tokens: int) -> tuple[Block, ...]:
    """The plan's items in order, as many to a block as ``batch_tokens`` holds, at least one."""
    blocks = []
    first = slot = 0
    for last in _ends(plan, batch_tokens):
        block = _of_items(plan, (first, last), slot)
        blocks.append(block)
        first, slot = last, block.slots.stop
    return tuple(blocks)


def build_block(
    groups: Sequence[Sequence[NDArray[np.int32]]],
    starts: Sequence[Sequence[int]],
    *,
    items: tuple[int, int] = (0, 0),
    slot: int = 0,
) -> Block:
    """The block of ``groups`` of sequences, scored from ``starts``, with slots from ``slot`` on.

    A sequence's last token is predicted and never fed.
    """
    tree = grow([[sequence[:-1] for sequence in group] for group in groups])
    sequences = [sequence for group in groups for sequence in group]
    rows, targets = [], []
    for number, start in enumerate(start for row in starts for start in row):
        # Row p - 1 of a sequence predicts its token p.
        rows.append(tree.rows(number)[start - 1 :])
        targets.append(sequences[number][start:].astype(np.int64))
    keys = np.concatenate(rows) << 32 | np.concatenate(targets)
    distinct, pairs = np.unique(keys, return_inverse=True)
    return Block(
        items=items,
        tree=tree,
        rows=distinct >> 32,
        targets=distinct & 0xFFFFFFFF,
        slots=slice(slot, slot + keys.size),
        pairs=pairs.reshape(-1).astype(np.int64),
    )


def _of_items(plan: TokenPlan, items: tuple[int, int], slot: int) -> Block:
    levels = range(len(plan.items.levels))
    groups = [[plan.sequence(item, level) for level in levels] for item in range(*items)]
    starts = [plan.starts[item].tolist() for item in range(*items)]
    return build_block(groups, starts, items=items, slot=slot)


def _ends(plan: TokenPlan, batch_tokens: int) -> list[int]:
    """For each block, the item after its last."""
    levels = range(len(plan.items.levels))
    ends: list[int] = []
    tokens = 0
    root: NDArray[np.int32] | None = None
    for item in range(len(plan.items)):
        group = [plan.sequence(item, level)[:-1] for level in levels]
        size = grow([group]).ids.size
        stem = group[0][: common_length(group)]
        if root is not None:
            stem = stem[: common_length([root, stem])]
            # What is saved is counted by the block's root as it is with this item in it.
            saved = stem.size if stem.size >= SHARED_ROOT else 0
            if tokens + size - saved <= batch_tokens:
                root, tokens = stem, tokens + size - saved
                continue
            ends.append(item)
            stem = group[0][: common_length(group)]
        root, tokens = stem, size
    ends.append(len(plan.items))
    return ends
