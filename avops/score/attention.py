"""Attention over a token tree: every node attends to its ancestors and, causally, to itself.

Registered with transformers' AttentionInterface as ``avops_tree``. A model whose attention goes
through that interface hands over queries, keys and values of all rows at once; which row may see
which is known here alone, from the layout that ``attending`` has set. transformers makes no mask
for an implementation that has registered none.

For a node, keys and values are those of its chain (ancestors, then itself), which stand at
positions 0, 1, 2, …: the last query goes with the last key (bottom-right), and a sliding window is
a band below that diagonal. On CUDA in half precision torch's varlen attention takes all nodes at
once, on processors with AVX-512 the operation ``tree_attention``; elsewhere each node is a call of
scaled_dot_product_attention, or of the same expression written out where scores are soft-capped.

Rows of a long node are taken ``PIECE_ROWS`` at a time, so that a mask has at most that many rows.
"""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple

from avops.errors import AvopsError, MissingExtraError, UserError
from avops.kernels import Nodes
from avops.kernels import tree_attention as kernel
from avops.score.choices import no_tree_attention
from avops.score.varlen import varlen

try:
    import torch
except ModuleNotFoundError as error:
    raise MissingExtraError(error.name or "torch", "score", "scoring") from error

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from avops.score.tree import Tree

NAME = "avops_tree"

PIECE_ROWS = 256
"""Queries of one call that needs a mask."""

KEPT_MASKS = 1 << 24
"""Mask elements that a layout keeps for all layers (64 MiB in f32); beyond, they are made anew."""

IGNORED = frozenset({"position_ids", "cache_position", "position_embeddings"})
"""Tensors that models pass along and no attention function uses."""


class UnsupportedAttentionError(AvopsError):
    """A model asks its attention for something that a tree cannot give; never shown to a user."""


class Piece(NamedTuple):
    """Queries ``begin:end`` of the packed rows, and the packed rows of their keys.

    offset: the first query's position minus the first key's.
    """

    begin: int
    end: int
    spans: tuple[tuple[int, int], ...]
    keys: int
    offset: int

    @property
    def square(self) -> bool:
        """Whether the first query goes with the first key, and the last with the last."""
        return self.offset == 0 and self.keys == self.end - self.begin


class Layout:
    """Who sees whom in one forward pass; and what the model's layers asked for (``windows``)."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._pieces: dict[tuple[int | None, bool], tuple[Piece, ...]] = {}
        self._masks: dict[tuple[Any, ...], torch.Tensor] = {}
        self._kept = 0
        self._varlen: dict[torch.device, _Lengths] = {}
        self._nodes: Nodes | None = None
        self.windows: list[int | None] = []

    def pieces(self, window: int | None, *, whole: bool) -> tuple[Piece, ...]:
        """All rows, in order. whole: a root without a window stays in one piece."""
        key = (window, whole)
        if key not in self._pieces:
            self._pieces[key] = tuple(_cut(self._tree, window, whole=whole))
        return self._pieces[key]

    def mask(self, piece: Piece, window: int | None, query: torch.Tensor) -> torch.Tensor:
        """0 where a query may see a key and -inf elsewhere, [query, key], beside ``query``."""
        rows = piece.end - piece.begin
        key = (rows, piece.keys, piece.offset, window, query.dtype, query.device)
        found = self._masks.get(key)
        if found is None:
            found = _mask(rows, piece, window, query)
            if self._kept + found.numel() <= KEPT_MASKS:
                self._kept += found.numel()
                self._masks[key] = found
        return found

    def lengths(self, device: torch.device) -> _Lengths:
        """The nodes as varlen attention wants them, on ``device``."""
        if device not in self._varlen:
            self._varlen[device] = _Lengths.of(self._tree, device)
        return self._varlen[device]

    def nodes(self) -> Nodes:
        """The nodes as the operation wants them."""
        if self._nodes is None:
            nodes = self._tree.nodes
            chains = [_joined(self._tree.chain(number)) for number in range(len(nodes))]
            self._nodes = Nodes([(node.begin, node.end) for node in nodes], chains)
        return self._nodes

    def forget(self) -> None:
        """Drop the masks: they are cheap beside what they take."""
        self._masks.clear()
        self._kept = 0


class _Lengths(NamedTuple):
    """gather: the packed row of every key, node after node. queries, keys: cumulative lengths."""

    gather: torch.Tensor
    queries: torch.Tensor
    keys: torch.Tensor
    longest_query: int
    longest_key: int

    @classmethod
    def of(cls, tree: Tree, device: Any) -> _Lengths:
        chains = [tree.chain(number) for number in range(len(tree.nodes))]
        rows = [torch.arange(begin, end) for chain in chains for begin, end in chain]
        queries = [node.end - node.begin for node in tree.nodes]
        keys = [sum(end - begin for begin, end in chain) for chain in chains]
        return cls(
            torch.cat(rows).to(device),
            torch.tensor([0, *queries]).cumsum(0).to(device, torch.int32),
            torch.tensor([0, *keys]).cumsum(0).to(device, torch.int32),
            max(queries),
            max(keys),
        )


_LAYOUT: ContextVar[Layout | None] = ContextVar("avops_tree_layout", default=None)


@contextmanager
def attending(layout: Layout) -> Iterator[None]:
    """Within the context, tree attention follows ``layout``."""
    token = _LAYOUT.set(layout)
    try:
        yield
    finally:
        _LAYOUT.reset(token)
        layout.forget()


def tree_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **asked: Any,
) -> tuple[torch.Tensor, None]:
    """Attention as transformers calls it: [1, heads, rows, size] in, [1, rows, heads, size] out."""
    layout = _LAYOUT.get()
    if layout is None:
        raise UserError(
            f"{type(module).__name__}: it was called while avops scores its model, in another "
            "thread or from a progress callback; expected nothing else to run the model until "
            "Scorer.run() is done"
        )
    _refuse(module, query, attention_mask, asked)
    window, softcap = asked.get("sliding_window"), asked.get("softcap")
    scaling = asked.get("scaling")
    scaling = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    layout.windows.append(window)
    if softcap is None:
        done = varlen(layout, query, key, value, (window, scaling))
        if done is None:
            done = _native(layout, query, key, value, (window, scaling))
        if done is not None:
            return done, None
    out = query.new_empty(1, query.shape[2], query.shape[1], value.shape[-1])
    for piece in layout.pieces(window, whole=softcap is None):
        rows = query[:, :, piece.begin : piece.end]
        keys, values = _gather(key, piece), _gather(value, piece)
        if softcap is not None:
            capped = layout.mask(piece, window, query)
            part = _capped(rows, keys, values, capped, (scaling, float(softcap)))
        else:
            causal = piece.square and (window is None or window >= piece.keys)
            mask = None if causal else layout.mask(piece, window, query)
            part = _sdpa(rows, keys, values, mask, scaling)
        out[:, piece.begin : piece.end] = part.transpose(1, 2)
    return out, None


def _refuse(module: Any, query: torch.Tensor, mask: Any, asked: dict[str, Any]) -> None:
    """Whatever would be ignored here and matters."""
    causal = asked.get("is_causal")
    if causal is False or (causal is None and getattr(module, "is_causal", True) is False):
        raise UnsupportedAttentionError("its attention is not causal")
    if mask is not None:
        raise UnsupportedAttentionError("it brings an attention mask of its own")
    if asked.get("dropout"):
        raise UnsupportedAttentionError("it drops attention weights at random")
    if query.shape[0] != 1:
        raise UnsupportedAttentionError("its attention does not run over the rows as they are fed")
    for name, given in asked.items():
        if isinstance(given, torch.Tensor) and name not in IGNORED:
            raise UnsupportedAttentionError(f"its attention takes {name!r}")


def _cut(tree: Tree, window: int | None, *, whole: bool) -> Iterator[Piece]:
    for number, node in enumerate(tree.nodes):
        chain = tree.chain(number)
        rows = node.end - node.begin
        alone = node.depth == 0 and whole and (window is None or window >= rows)
        step = rows if alone else PIECE_ROWS
        for begin in range(0, rows, step):
            end = min(begin + step, rows)
            low = 0 if window is None else max(0, node.depth + begin - window + 1)
            high = node.depth + end
            yield Piece(
                node.begin + begin,
                node.begin + end,
                _clip(chain, low, high),
                high - low,
                node.depth + begin - low,
            )


def _clip(chain: tuple[tuple[int, int], ...], low: int, high: int) -> tuple[tuple[int, int], ...]:
    """The packed rows of positions ``low:high``; neighbours in memory become one span."""
    spans: list[tuple[int, int]] = []
    position = 0
    for begin, end in chain:
        first, last = max(low, position), min(high, position + end - begin)
        if first < last:
            span = (begin + first - position, begin + last - position)
            spans.append(span)
        position += end - begin
    return tuple(_joined(spans))


def _joined(chain: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same rows, neighbours in memory as one span."""
    spans: list[tuple[int, int]] = []
    for begin, end in chain:
        if spans and spans[-1][1] == begin:
            begin = spans.pop()[0]
        spans.append((begin, end))
    return spans


def _mask(rows: int, piece: Piece, window: int | None, like: torch.Tensor) -> torch.Tensor:
    query = torch.arange(rows, device=like.device)[:, None] + piece.offset
    key = torch.arange(piece.keys, device=like.device)
    hidden = key > query
    if window is not None:
        hidden |= key <= query - window
    return like.new_zeros(rows, piece.keys).masked_fill_(hidden, float("-inf"))


def _gather(rows: torch.Tensor, piece: Piece) -> torch.Tensor:
    parts = [rows[:, :, begin:end] for begin, end in piece.spans]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 2)


def _sdpa(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float,
) -> torch.Tensor:
    groups = query.shape[1] // key.shape[1]
    # CUDA's masked kernels take as many key heads as query heads; the CPU's share them.
    if groups > 1 and query.is_cuda:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    return torch.nn.functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        is_causal=mask is None,
        scale=scaling,
        enable_gqa=key.shape[1] != query.shape[1],
    )


def _capped(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    numbers: tuple[float, float],
) -> torch.Tensor:
    """softmax(cap · tanh(q·kᵀ · scaling / cap) + mask) · v, in the order of transformers' own."""
    scaling, cap = numbers
    heads = key.shape[1]
    _, count, rows, size = query.shape
    grouped = query.reshape(1, heads, count // heads, rows, size)
    scores = torch.matmul(grouped, key[:, :, None].transpose(-1, -2)).mul_(scaling)
    scores = scores.div_(cap).tanh_().mul_(cap).add_(mask)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    return torch.matmul(weights, value[:, :, None]).flatten(1, 2)


def _native(
    layout: Layout,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    numbers: tuple[int | None, float],
) -> torch.Tensor | None:
    """All nodes by the operation, where it is native and serves: [1, rows, heads, size]."""
    if value.shape[-1] != query.shape[-1]:
        return None
    if no_tree_attention(query.device.type, query.dtype, query.shape[-1]) is not None:
        return None
    if any(rows.stride(-1) != 1 for rows in (query, key, value)):
        return None
    window, scaling = numbers
    return kernel(
        query[0], key[0], value[0], layout.nodes(), scale=scaling, window=window, backend="native"
    )[None]
