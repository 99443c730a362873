"""tree_attention: every row of a token tree attends to its ancestors and, causally, to its node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from avops.kernels import registry
from avops.kernels.logprob.checks import check_threads_for

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

__all__ = ["MOST_SIZE", "Nodes", "tree_attention"]

MOST_SIZE = 256
"""Elements of a head, at most, that the native code takes."""


class Nodes:
    """Who sees whom: runs of rows and, for each, the rows at positions 0, 1, 2, … of its sequence.

    Parameters
    ----------
    runs
        (begin, end) of each node's rows: together all rows, in order.
    chains
        For each node (begin, end) of the spans of rows that it sees, by position; its own rows are
        the end of the last.

    """

    def __init__(
        self, runs: Sequence[tuple[int, int]], chains: Sequence[Sequence[tuple[int, int]]]
    ) -> None:
        rows = 0
        nodes: list[tuple[int, int, int, int, int]] = []
        spans: list[tuple[int, int]] = []
        for number, ((begin, end), chain) in enumerate(zip(runs, chains, strict=True)):
            depth = sum(last - first for first, last in chain) - (end - begin)
            inside = all(0 <= first < last <= end for first, last in chain)
            if begin != rows or end <= begin or not inside or not chain or depth < 0:
                raise ValueError(
                    f"node {number} has rows {begin} to {end} and sees {list(chain)}, expected "
                    f"rows from {rows} on and spans of rows up to its own"
                )
            if chain[-1][1] != end or chain[-1][0] > begin:
                raise ValueError(
                    f"node {number} has rows {begin} to {end} and sees {list(chain)}, expected "
                    "its own rows at the end of the last span"
                )
            nodes.append((begin, end, depth, len(spans), len(spans) + len(chain)))
            spans += [*chain]
            rows = end
        self.rows = rows
        import numpy as np

        self.nodes: NDArray[np.int64] = np.array(nodes, np.int64).reshape(-1, 5)
        self.spans: NDArray[np.int64] = np.array(spans, np.int64).reshape(-1, 2)


def tree_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    nodes: Nodes,
    *,
    scale: float,
    window: int | None = None,
    threads: int | None = None,
    backend: str | registry.Implementation | None = None,
) -> torch.Tensor:
    """softmax(scale · query · keyᵀ) · value over what each row sees: [rows, heads, size].

    A row at position p of its sequence sees the rows at positions p − window + 1 to p (0 to p
    without a window).

    Shapes and dtypes
        query: [heads, rows, size]; key and value: [key heads, rows, size], where heads is a
        multiple of key heads. All f32 or all bf16, contiguous within a row; heads and rows at any
        distance.
    Numerics
        Scores are f32 sums of exact or fused products in one chain (where the processor
        multiplies pairs of bf16, what is below 2⁻¹²⁶ counts as 0), times ``scale``. Weights
        are f32 exponentials within 1 ulp, never rounded to less; values are summed in f32 in
        blocks of 48 positions, and rounded once to the type. With u = 2⁻²⁴, n = size + 2,
        s = scale · Σ |q·k| (its largest over a row's keys) and m keys,
            |f32 result − exact| ≤ (4·n·s + 2·m + 16)·u·Σ_j w_j·|v_j|
        to first order, w being the exact weights. A row's bits depend on its query and on what it
        sees: not on how that is cut into nodes and spans, on other rows, on threads, or on the
        place of rows in memory.
        A row that sees NaN is NaN; so may be rows up to 63 before it in its node.
    Errors
        TypeError, ValueError: what does not fit. BackendError: a forced backend cannot serve.
    Memory and bytes moved
        Allocates the result. Native: 200 KiB of stack a thread; nothing is gathered.
    Source
        Online softmax over blocks (Milakov and Gimelshein, arXiv 1805.02867; Dao et al.,
        arXiv 2205.14135).
    """
    import torch

    _check(query, key, value, nodes)
    if window is not None and window < 1:
        raise ValueError(f"window is {window}, expected 1 or more, or None")
    count = check_threads_for(threads)
    implementation = registry.resolve("tree_attention", backend, device=query.device.type)
    heads, rows, size = query.shape
    out = torch.empty(rows, heads, size, dtype=query.dtype, device=query.device)
    if rows:
        implementation.run((query, key, value, out.transpose(0, 1)), nodes, scale, window, count)
    return out


def _check(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, nodes: Nodes) -> None:
    import torch

    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if tensor.dtype != query.dtype or tensor.dtype not in (torch.float32, torch.bfloat16):
            raise TypeError(
                f"{name} is {tensor.dtype} and query {query.dtype}, expected all float32 or all "
                "bfloat16"
            )
        if tensor.dim() != 3 or tensor.stride(2) != 1 or tensor.device != query.device:
            raise ValueError(
                f"{name} has shape {list(tensor.shape)} and strides {list(tensor.stride())} on "
                f"{tensor.device}, expected [heads, rows, size] on {query.device}, contiguous "
                "within a row"
            )
        if tensor.data_ptr() % tensor.element_size():
            raise ValueError(f"{name} is not aligned to its elements; pass {name}.clone()")
    (heads, rows, size), key_heads = query.shape, key.shape[0]
    fits = key.shape == value.shape == (key_heads, rows, size) and rows == nodes.rows
    if not fits or not size or not key_heads or heads % key_heads:
        raise ValueError(
            f"query, key and value have shapes {list(query.shape)}, {list(key.shape)} and "
            f"{list(value.shape)} for nodes of {nodes.rows} rows, expected [heads, rows, size], "
            "and heads to be a multiple of the key's"
        )
