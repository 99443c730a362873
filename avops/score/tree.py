"""The token tree: every token that sequences have in common is computed once.

Sequences of one group (the levels of an item) share their leading tokens and part where their ids
part, not where the response begins: two responses may begin alike. A node is a run of tokens
between two such points. Its first token follows its parent's last, so the row that predicts it is
the parent's last row.

Nodes stand one after the other, parents before children, as they are fed. Leading tokens that all
groups have in common (a system prompt) become one root where they are at least ``SHARED_ROOT``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

SHARED_ROOT = 16
"""Tokens that groups must have in common before one root holds them: below, what is saved is less
than a percent of a group, and every query would need its keys gathered."""


class Node(NamedTuple):
    """Rows ``begin:end`` of the tree, at positions from ``depth`` on; parent is -1 for a root."""

    begin: int
    end: int
    depth: int
    parent: int


@dataclass(frozen=True, eq=False)
class Tree:
    """ids: int32, node after node. leaves: for each sequence, the node that holds its last token.

    Equal sequences have one leaf: their rows, and so their scores, are the same.
    """

    ids: NDArray[np.int32]
    nodes: tuple[Node, ...]
    leaves: tuple[int, ...]

    @property
    def positions(self) -> NDArray[np.int64]:
        """The position of every row in its own sequence."""
        parts = [np.arange(n.depth, n.depth + n.end - n.begin) for n in self.nodes]
        return np.concatenate(parts).astype(np.int64)

    def chain(self, node: int) -> tuple[tuple[int, int], ...]:
        """The rows of a node's ancestors, root first, and its own last: (begin, end) of each."""
        spans = []
        while node >= 0:
            spans.append((self.nodes[node].begin, self.nodes[node].end))
            node = self.nodes[node].parent
        return tuple(reversed(spans))

    def rows(self, sequence: int) -> NDArray[np.int64]:
        """The row of every token of one sequence."""
        spans = self.chain(self.leaves[sequence])
        return np.concatenate([np.arange(begin, end) for begin, end in spans]).astype(np.int64)


def grow(groups: Sequence[Sequence[NDArray[np.int32]]]) -> Tree:
    """The tree of ``groups`` of sequences, none of them empty."""
    return _Growing(groups).tree()


def common_length(sequences: Sequence[NDArray[np.int32]], depth: int = 0) -> int:
    """How many ids from ``depth`` on all ``sequences`` have in common."""
    length = min(sequence.size for sequence in sequences) - depth
    differ = np.zeros(length, bool)
    first = sequences[0][depth : depth + length]
    for sequence in sequences[1:]:
        differ |= sequence[depth : depth + length] != first
    return int(differ.argmax()) if differ.any() else length


class _Growing:
    def __init__(self, groups: Sequence[Sequence[NDArray[np.int32]]]) -> None:
        self.groups = groups
        self.sequences = [sequence for group in groups for sequence in group]
        self.nodes: list[Node] = []
        self.ids: list[NDArray[np.int32]] = []
        self.leaves = [-1] * len(self.sequences)

    def tree(self) -> Tree:
        depth, root = 0, -1
        if len(self.groups) > 1:
            depth = common_length(self.sequences)
            # A node holds at least one token, so a sequence that ends in the root ends the sharing.
            if depth < SHARED_ROOT:
                depth = 0
            else:
                root = self._node(self.sequences[0], 0, depth, -1)
        first = 0
        for group in self.groups:
            members = list(range(first, first + len(group)))
            self._part(members, depth, root)
            first += len(group)
        return Tree(np.concatenate(self.ids), tuple(self.nodes), tuple(self.leaves))

    def _part(self, members: list[int], depth: int, parent: int) -> None:
        """Nodes for ``members``, which have their first ``depth`` tokens in common."""
        children: dict[int, list[int]] = {}
        for member in members:
            if self.sequences[member].size == depth:
                self.leaves[member] = parent
            else:
                children.setdefault(int(self.sequences[member][depth]), []).append(member)
        for same in children.values():
            end = depth + common_length([self.sequences[m] for m in same], depth)
            node = self._node(self.sequences[same[0]], depth, end, parent)
            self._part(same, end, node)

    def _node(self, sequence: NDArray[np.int32], depth: int, end: int, parent: int) -> int:
        begin = self.nodes[-1].end if self.nodes else 0
        self.nodes.append(Node(begin, begin + end - depth, depth, parent))
        self.ids.append(sequence[depth:end])
        return len(self.nodes) - 1
