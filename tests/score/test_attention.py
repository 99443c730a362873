"""Tree attention against plain attention over whole sequences, written out in f64."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from avops.errors import UserError
from avops.score import attention
from avops.score import varlen as varlen_file
from avops.score.attention import (
    Layout,
    UnsupportedAttentionError,
    attending,
    tree_attention,
)
from avops.score.tree import Tree, grow

UNIT = 2.0**-24
CAUSAL = SimpleNamespace(is_causal=True)
QUERY = list(range(9))
# Two items: responses that part at once, late, after one token, and one that ends in another.
GROUPS = [
    [[*QUERY, 20, 21, 22, 23, 24], [*QUERY, 20, 21, 30], [*QUERY, 40], [*QUERY, 20, 21]],
    [[7, 8, 9], [7, 8, 10, 11, 12, 13]],
]


@pytest.fixture(scope="module")
def tree() -> Tree:
    return grow([[np.array(row, np.int32) for row in group] for group in GROUPS])


def states(tree: Tree, dtype: torch.dtype = torch.float32, size: int = 8) -> list[torch.Tensor]:
    """Queries of 4 heads, keys and values of 2, as a model hands them over."""
    generator = torch.Generator().manual_seed(5)
    return [
        torch.randn(1, tree.ids.size, heads, size, generator=generator).to(dtype).transpose(1, 2)
        for heads in (4, 2, 2)
    ]


def plain(
    tree: Tree, parts: list[torch.Tensor], window: int | None, cap: float | None, scaling: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The output of every row in f64, and how far f32 may be from it at worst."""
    query, key, value = (part[0].double().cpu() for part in parts)
    key, value = (part.repeat_interleave(2, 0) for part in (key, value))
    out = torch.full((tree.ids.size, 4, value.shape[-1]), torch.nan, dtype=torch.float64)
    bound = torch.full_like(out, torch.nan)
    for number in range(sum(map(len, GROUPS))):
        rows = torch.from_numpy(tree.rows(number))
        for last in range(len(rows)):
            seen = rows[max(0, last - window + 1) if window else 0 : last + 1]
            q, k, v = query[:, rows[last]], key[:, seen], value[:, seen]
            scores = (k @ q[..., None])[..., 0] * scaling
            sizes = (k.abs() @ q.abs()[..., None]).amax((1, 2)) * scaling
            if cap:
                scores, sizes = cap * torch.tanh(scores / cap), sizes + 8 * cap
            weights = torch.softmax(scores, -1)
            out[rows[last]] = (weights[:, None] @ v)[:, 0]
            # exp and its sum each move by a score's error; two sums have a term per key.
            n = 2 * (q.shape[-1] + 2) * sizes + 2 * len(seen) + 8
            bound[rows[last]] = UNIT * n[:, None] * (weights[:, None] @ v.abs())[:, 0]
    return out, bound


@pytest.mark.parametrize("piece_rows", [None, 1, 3, 256], ids=str)
@pytest.mark.parametrize(
    ("window", "cap", "scaling"),
    [(None, None, None), (4, None, 0.5), (1, None, 0.5), (None, 1.5, 0.5), (3, 1.5, 2.0)],
)
def test_every_row_sees_its_own_past(
    tree: Tree,
    monkeypatch: pytest.MonkeyPatch,
    window: int | None,
    cap: float | None,
    scaling: float | None,
    piece_rows: int | None,
) -> None:
    if piece_rows is not None:  # torch's way; else the operation, where the processor serves
        monkeypatch.setattr(attention, "_native", lambda *_: None)
        monkeypatch.setattr(attention, "PIECE_ROWS", piece_rows)
    parts = states(tree)
    layout = Layout(tree)
    with attending(layout):
        got, weights = tree_attention(
            CAUSAL, *parts, None, scaling=scaling, sliding_window=window, softcap=cap, dropout=0.0
        )
    want, bound = plain(tree, parts, window, cap, 8**-0.5 if scaling is None else scaling)
    assert weights is None
    assert got.shape == (1, tree.ids.size, 4, 8)
    assert ((got[0].double() - want).abs() <= bound).all()
    assert layout.windows == [window]
    assert not layout._masks  # nothing outlives the pass


def test_a_wrong_alignment_would_show(tree: Tree) -> None:
    # torch's is_causal puts the first query on the first key: a branch would lose its query.
    parts = states(tree)
    want, bound = plain(tree, parts, None, None, 8**-0.5)
    node, chain = tree.nodes[1], tree.chain(1)
    query, key, value = (part.double() for part in parts)
    rows = torch.cat([torch.arange(*span) for span in chain])
    naive = functional.scaled_dot_product_attention(
        query[:, :, node.begin : node.end],
        key[:, :, rows].repeat_interleave(2, 1),
        value[:, :, rows].repeat_interleave(2, 1),
        is_causal=True,
    )[0].transpose(0, 1)
    assert ((naive - want[node.begin : node.end]).abs() > 100 * bound[node.begin : node.end]).any()


def test_masks_are_bounded(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "PIECE_ROWS", 2)
    monkeypatch.setattr(attention, "KEPT_MASKS", 40)
    layout = Layout(tree)
    sizes = []
    for piece in layout.pieces(4, whole=True):
        sizes.append(layout.mask(piece, 4, torch.empty(0)).shape)
        assert piece.keys <= 4 + 2 - 1  # keys that no query sees are not fetched
    assert max(rows for rows, _ in sizes) == 2
    assert 0 < sum(mask.numel() for mask in layout._masks.values()) <= 40


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"attention_mask": torch.zeros(1, 1, 2, 2)}, "brings an attention mask of its own"),
        ({"is_causal": False}, "its attention is not causal"),
        ({"dropout": 0.1}, "drops attention weights at random"),
        ({"s_aux": torch.zeros(4)}, "its attention takes 's_aux'"),
        ({"position_bias": torch.zeros(4)}, "its attention takes 'position_bias'"),
    ],
)
def test_what_a_tree_cannot_give_is_refused(tree: Tree, asked: dict[str, Any], reason: str) -> None:
    mask = asked.pop("attention_mask", None)
    with (
        attending(Layout(tree)),
        pytest.raises(UnsupportedAttentionError, match=reason),
    ):
        tree_attention(CAUSAL, *states(tree), mask, **asked)


def test_refused_outside_of_a_run_and_where_not_causal(tree: Tree) -> None:
    with pytest.raises(UserError, match="called while avops scores its model, in another thread"):
        tree_attention(CAUSAL, *states(tree), None)
    with (
        attending(Layout(tree)),
        pytest.raises(UnsupportedAttentionError, match="not causal"),
    ):
        tree_attention(SimpleNamespace(is_causal=False), *states(tree), None)


def varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor,
    max_q: int,
    max_k: int,
    **options: Any,
) -> torch.Tensor:
    """What flash attention promises, plainly: the last query goes with the last key."""
    left = options.get("window_size", (-1, 0))[0]
    scale = options.get("scale", query.shape[-1] ** -0.5)
    out = torch.empty_like(query)
    for (a, b), (c, d) in zip(
        itertools.pairwise(cu_seq_q.tolist()), itertools.pairwise(cu_seq_k.tolist()), strict=True
    ):
        assert b - a <= max_q
        assert d - c <= max_k
        last = torch.arange(b - a)[:, None] + (d - c) - (b - a)
        keys = torch.arange(d - c)
        seen = keys <= last if left < 0 else (keys <= last) & (keys >= last - left)
        parts = (query[a:b], *(x[c:d].repeat_interleave(2, 1) for x in (key, value)))
        q, k, v = (x.transpose(0, 1)[None] for x in parts)
        found = functional.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scale)
        out[a:b] = found[0].transpose(0, 1)
    return out


@pytest.mark.parametrize("window", [None, 1, 4])
@pytest.mark.parametrize(
    "takes", [{"window_size", "scale", "enable_gqa"}, {"window_size", "scale"}, {"is_causal"}]
)
def test_varlen_gets_the_same_tree(
    tree: Tree, monkeypatch: pytest.MonkeyPatch, window: int | None, takes: set[str]
) -> None:
    calls = []

    def spy(*args: Any, **options: Any) -> torch.Tensor:
        assert set(options) == takes
        calls.append(options)
        return varlen(*args, **options)

    call = varlen_file.Varlen(spy, frozenset(takes))
    monkeypatch.setattr(varlen_file, "varlen_attention", lambda: call)
    monkeypatch.setattr(varlen_file, "_flash_takes", lambda query, value: True)
    parts = states(tree)
    with attending(Layout(tree)):
        got, _ = tree_attention(CAUSAL, *parts, None, sliding_window=window)
    want, bound = plain(tree, parts, window, None, 8**-0.5)
    assert ((got[0].double() - want).abs() <= bound).all()
    # A version without windows serves only layers without one.
    assert bool(calls) is (window is None or "window_size" in takes)


def test_varlen_without_a_scale_serves_only_its_own(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(varlen_file, "_flash_takes", lambda query, value: True)
    call = varlen_file.Varlen(varlen, frozenset({"is_causal"}))
    monkeypatch.setattr(varlen_file, "varlen_attention", lambda: call)
    query, key, _ = states(tree)
    assert varlen_file.options_of(call.takes, query, key, (None, 8**-0.5)) == {"is_causal": True}
    assert varlen_file.options_of(call.takes, query, key, (None, 0.5)) is None


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(("window", "cap"), [(None, None), (4, None), (None, 1.5)])
def test_on_cuda(tree: Tree, dtype: torch.dtype, window: int | None, cap: float | None) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device on this machine")
    parts = [part.cuda() for part in states(tree, dtype, 64)]
    with attending(Layout(tree)):
        got, _ = tree_attention(CAUSAL, *parts, None, sliding_window=window, softcap=cap)
    want, bound = plain(tree, parts, window, cap, 64**-0.5)
    own = torch.finfo(dtype).eps / 2
    if own > UNIT:  # scores (where capped), weights and the result are rounded to half precision
        bound = bound + (6 * own if cap is None else 20 * own) * parts[2].abs().max().item()
    assert ((got[0].double().cpu() - want).abs() <= bound).all()
