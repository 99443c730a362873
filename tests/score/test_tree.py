"""Trees and blocks: every token once, every sequence whole, cut from the plan alone."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avops.score import Item, Items, TokenPlan, encode_ids
from avops.score.blocks import build_block, cut_blocks
from avops.score.tree import SHARED_ROOT, Node, Tree, grow


def arrays(*rows: list[int]) -> list[np.ndarray]:
    return [np.array(row, np.int32) for row in rows]


def plan_of(ids: list[list[list[int]]], starts: list[list[int]]) -> TokenPlan:
    levels = tuple("abcdefgh"[: len(ids[0])])
    entries = tuple(Item("x", "q", dict.fromkeys(levels, "r"), n + 1) for n in range(len(ids)))
    return encode_ids(Items("ids", levels, entries), ids, starts, score_eos=False)


def test_branches_part_where_ids_part() -> None:
    tree = grow([arrays([1, 2, 3, 4, 5], [1, 2, 3, 4, 6, 7], [1, 2, 9])])
    assert tree.nodes == (Node(0, 2, 0, -1), Node(2, 4, 2, 0), Node(4, 5, 4, 1), Node(5, 7, 4, 1),
                          Node(7, 8, 2, 0))  # fmt: skip
    assert tree.ids.tolist() == [1, 2, 3, 4, 5, 6, 7, 9]
    assert tree.positions.tolist() == [0, 1, 2, 3, 4, 4, 5, 2]
    assert tree.rows(1).tolist() == [0, 1, 2, 3, 5, 6]


def test_prefixes_and_equals_have_no_nodes_of_their_own() -> None:
    tree = grow([arrays([1, 2, 3], [1, 2], [1, 2, 3])])
    assert tree.leaves == (1, 0, 1)
    assert len(tree.nodes) == 2


def test_nothing_in_common() -> None:
    tree = grow([arrays([1, 2], [3])])
    assert [node.parent for node in tree.nodes] == [-1, -1]


@pytest.mark.parametrize("length", [SHARED_ROOT - 1, SHARED_ROOT])
def test_items_share_a_long_root_and_not_a_short_one(length: int) -> None:
    root = list(range(100, 100 + length))
    tree = grow([arrays([*root, i, 7], [*root, i, 8]) for i in range(3)])
    shares = length >= SHARED_ROOT
    assert tree.ids.size == (length + 9 if shares else 3 * (length + 3))
    assert sum(node.parent == -1 for node in tree.nodes) == (1 if shares else 3)


GROUPS = st.lists(
    st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=9), min_size=1, max_size=5),
    min_size=1,
    max_size=4,
)


def check(tree: Tree, groups: list[list[np.ndarray]]) -> None:
    assert [node.begin for node in tree.nodes] == [0, *(node.end for node in tree.nodes[:-1])]
    assert tree.nodes[-1].end == tree.ids.size
    for node in tree.nodes:
        assert node.end > node.begin
        if node.parent >= 0:
            parent = tree.nodes[node.parent]
            assert node.depth == parent.depth + parent.end - parent.begin
    for number, sequence in enumerate(sequence for group in groups for sequence in group):
        rows = tree.rows(number)
        assert np.array_equal(tree.ids[rows], sequence)
        assert np.array_equal(tree.positions[rows], np.arange(sequence.size))


@given(GROUPS)
def test_every_sequence_is_whole_and_every_prefix_stands_once(lists: list[Any]) -> None:
    groups = [arrays(*group) for group in lists]
    tree = grow(groups)
    check(tree, groups)
    if len(groups) == 1:
        prefixes = {tuple(row[:n]) for row in lists[0] for n in range(1, len(row) + 1)}
        assert tree.ids.size == len(prefixes)


@given(GROUPS, st.data())
def test_every_scored_token_has_its_row(lists: list[Any], data: st.DataObject) -> None:
    groups = [arrays(*([5, *row] for row in group)) for group in lists]
    starts = [[data.draw(st.integers(1, row.size - 1)) for row in group] for group in groups]
    block = build_block(groups, starts, slot=11)
    pairs = list(zip(block.rows.tolist(), block.targets.tolist(), strict=True))
    assert len(set(pairs)) == len(pairs)
    assert all(a <= b for (a, _), (b, _) in pairwise(pairs))
    slot = 0
    sequences = [row for group in groups for row in group]
    for sequence, start in zip(sequences, (s for row in starts for s in row), strict=True):
        for position in range(start, sequence.size):
            row, target = pairs[block.pairs[slot]]
            # The row that predicts a token ends the chain of everything before it.
            assert target == sequence[position]
            assert block.tree.positions[row] == position - 1
            assert block.tree.ids[row] == sequence[position - 1]
            slot += 1
    assert block.slots == slice(11, 11 + slot)


def test_blocks_hold_whole_items_in_order() -> None:
    rng = np.random.default_rng(3)
    ids = [[rng.integers(0, 50, 6).tolist() for _ in "ab"] for _ in range(9)]
    plan = plan_of(ids, [[2, 2]] * 9)
    for budget in (1, 21, 1000):
        blocks = cut_blocks(plan, budget)
        assert [b.items for b in blocks] == list(
            pairwise([0, *(block.items[1] for block in blocks)])
        )
        assert blocks[-1].items[1] == 9
        assert blocks[-1].slots.stop == plan.record.scored_tokens
        assert all(b.tokens <= budget or b.items[1] - b.items[0] == 1 for b in blocks)
        again = cut_blocks(plan_of(ids, [[2, 2]] * 9), budget)
        assert [b.sha256 for b in again] == [b.sha256 for b in blocks]
    assert len(cut_blocks(plan, 1000)) == 1
    assert len(cut_blocks(plan, 1)) == 9


def test_a_shared_root_makes_room_in_blocks() -> None:
    root = list(range(100, 140))
    plan = plan_of([[[*root, i, 7, 1], [*root, i, 8, 1]] for i in range(6)], [[41, 41]] * 6)
    blocks = cut_blocks(plan, 40 + 2 * 3)
    assert [block.tokens for block in blocks] == [46, 46, 46]


def test_a_block_hash_says_what_it_computes() -> None:
    groups = [arrays([1, 2, 3, 4], [1, 2, 5, 6])]
    hashes = {
        build_block(groups, [[2, 2]]).sha256,
        build_block(groups, [[1, 2]]).sha256,
        build_block([arrays([1, 2, 3, 4], [1, 2, 5, 7])], [[2, 2]]).sha256,
        build_block([arrays([1, 2, 3, 9], [1, 2, 5, 6])], [[2, 2]]).sha256,
        build_block([arrays([1, 2, 3, 4]), arrays([1, 2, 5, 6])], [[2], [2]]).sha256,
    }
    assert len(hashes) == 5
    assert build_block(groups, [[2, 2]], slot=9).sha256 in hashes  # wherever it stands
