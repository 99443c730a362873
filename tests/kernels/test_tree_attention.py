"""tree_attention: native against f64, over trees, windows, sizes, layouts and threads."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
import torch

from avops.kernels import Nodes, registry, tree_attention
from avops.kernels.tree_attention import MOST_SIZE, native

F32, BF16 = torch.float32, torch.bfloat16
UNIT = 2.0**-24
available, reason = native.available()
needed = pytest.mark.skipif(not available, reason=reason)
DTYPES = [d for d in (F32, BF16) if native.serves(d, 64)] or [F32]
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)

# A root; a branch behind it; one that skips the branch; another root; branches of one row, of 16,
# of 65; one whose chain has three spans.
NODES = Nodes(
    [(0, 130), (130, 300), (300, 350), (350, 420), (420, 421), (421, 437), (437, 502), (502, 530)],
    [
        [(0, 130)], [(0, 300)], [(0, 130), (300, 350)], [(350, 420)], [(350, 421)],
        [(350, 420), (421, 437)], [(350, 420), (437, 502)], [(350, 420), (421, 437), (502, 530)],
    ],
)  # fmt: skip


def states(
    rows: int = NODES.rows, heads: int = 4, shared: int = 2, size: int = 64,
    dtype: torch.dtype = F32, scale: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """Query, key and value as a model has them: heads within rows."""
    draw = torch.Generator().manual_seed(rows + size)
    query, key, value = (
        (torch.randn(rows, count, size, generator=draw) * scale).to(dtype).transpose(0, 1)
        for count in (heads, shared, shared)
    )
    return query, key, value


def exact(
    parts: tuple[torch.Tensor, ...], nodes: Nodes, scale: float, window: int | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Node by node in f64, and the contract's bound."""
    query, key, value = (part.double() for part in parts)
    group = query.shape[0] // key.shape[0]
    key, value = (part.repeat_interleave(group, 0) for part in (key, value))
    out = torch.full((query.shape[1], query.shape[0], query.shape[2]), torch.nan).double()
    bound = torch.full_like(out, torch.nan)
    for begin, end, depth, first, last in nodes.nodes.tolist():
        chain = torch.cat([torch.arange(*span) for span in nodes.spans[first:last].tolist()])
        assert chain[depth:].tolist() == list(range(begin, end))
        row, position = torch.arange(depth, len(chain))[:, None], torch.arange(len(chain))
        seen = (position <= row) & (position > row - (window or len(chain)))
        scores = query[:, begin:end] @ key[:, chain].transpose(1, 2) * scale
        sizes = query[:, begin:end].abs() @ key[:, chain].abs().transpose(1, 2) * abs(scale)
        weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
        out[begin:end] = (weights @ value[:, chain]).transpose(0, 1)
        largest = sizes.where(seen, 0.0).amax(-1, keepdim=True)
        n = 4 * (query.shape[2] + 2) * largest + 2 * seen.sum(1)[:, None] + 16
        bound[begin:end] = (n * UNIT * (weights @ value[:, chain].abs())).transpose(0, 1)
    if parts[0].dtype == BF16:
        bound += 2.0**-8 * out.abs()  # the result's rounding
    return out, bound


@needed
@dtypes
@pytest.mark.parametrize("window", [None, 1, 2, 17, 64, 100, 10_000])
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_every_row_sees_its_own_past(window: int | None, dtype: torch.dtype, backend: str) -> None:
    parts = states(dtype=dtype)
    want, bound = exact(parts, NODES, 0.125, window)
    got = tree_attention(*parts, NODES, scale=0.125, window=window, backend=backend)
    assert (got.dtype, got.shape) == (dtype, want.shape)
    assert ((got.double() - want).abs() <= bound).all()


@needed
@dtypes
@pytest.mark.parametrize("size", [1, 2, 5, 15, 16, 33, 80, 128, MOST_SIZE])
def test_any_size(size: int, dtype: torch.dtype) -> None:
    parts = states(size=size, dtype=dtype)
    want, bound = exact(parts, NODES, size**-0.5, 50)
    got = tree_attention(*parts, NODES, scale=size**-0.5, window=50, backend="native")
    assert ((got.double() - want).abs() <= bound).all()


@needed
@pytest.mark.parametrize(("heads", "shared"), [(1, 1), (6, 6), (6, 1), (6, 3), (12, 4)])
def test_any_grouping(heads: int, shared: int) -> None:
    parts = states(heads=heads, shared=shared, size=24)
    want, bound = exact(parts, NODES, 0.2, None)
    got = tree_attention(*parts, NODES, scale=0.2, backend="native")
    assert ((got.double() - want).abs() <= bound).all()


@needed
@pytest.mark.parametrize("rows", [1, 2, 15, 16, 17, 31, 33, 47, 48, 49, 63, 64, 65, 129])
def test_any_length(rows: int) -> None:
    nodes = Nodes([(0, rows)], [[(0, rows)]])
    parts = states(rows)
    want, bound = exact(parts, nodes, 0.3, None)
    got = tree_attention(*parts, nodes, scale=0.3, backend="native")
    assert ((got.double() - want).abs() <= bound).all()


@needed
@dtypes
def test_layout_threads_and_other_rows_change_no_bit(dtype: torch.dtype) -> None:
    parts = states(dtype=dtype)
    want = tree_attention(*parts, NODES, scale=0.125, threads=1, backend="native")
    for threads in (2, 3, 64):
        got = tree_attention(*parts, NODES, scale=0.125, threads=threads, backend="native")
        assert torch.equal(got, want)
    # Heads first, rows apart, and at an odd element.
    room = [torch.zeros(part.numel() * 2 + 1, dtype=dtype) for part in parts]
    shifted: list[torch.Tensor] = []
    for part, space in zip(parts, room, strict=True):
        view = space[1:].view(*part.shape[:2], part.shape[2] * 2)[..., : part.shape[2]]
        shifted.append(view.copy_(part))
    query, key, value = shifted
    got = tree_attention(query, key, value, NODES, scale=0.125, backend="native")
    assert torch.equal(got, want)
    # The second tree alone: its rows lie elsewhere.
    second = Nodes([(0, 70), (70, 71)], [[(0, 70)], [(0, 71)]])
    query, key, value = (part[:, 350:421] for part in parts)
    got = tree_attention(query, key, value, second, scale=0.125, backend="native")
    assert torch.equal(got, want[350:421])


# One sequence of 230 rows, cut at these rows into nodes of which each sees all before it.
CUTS = [[], [7], [48], [96, 144], [60, 61, 150], list(range(16, 230, 16)), list(range(1, 230))]


@needed
@dtypes
@pytest.mark.parametrize("window", [None, 5, 48, 100])
def test_how_a_sequence_is_cut_changes_no_bit(dtype: torch.dtype, window: int | None) -> None:
    parts = states(230, dtype=dtype)
    want = None
    for cuts in CUTS:
        runs = [*zip([0, *cuts], [*cuts, 230], strict=True)]
        whole = Nodes(runs, [[(0, end)] for _, end in runs])
        pieces = Nodes(runs, [runs[: number + 1] for number in range(len(runs))])
        for nodes in (whole, pieces):
            got = tree_attention(*parts, nodes, scale=0.2, window=window, backend="native")
            want = got if want is None else want
            assert torch.equal(got, want)
    # With a branch between the first 100 rows and the rest, which these do not see.
    apart = torch.cat((torch.arange(100), torch.arange(30), torch.arange(100, 230)))
    nodes = Nodes(
        [(0, 100), (100, 130), (130, 260)], [[(0, 100)], [(0, 130)], [(0, 100), (130, 260)]]
    )
    query, key, value = (part[:, apart] for part in parts)
    got = tree_attention(query, key, value, nodes, scale=0.2, window=window, backend="native")
    assert want is not None
    assert torch.equal(got[:100], want[:100])
    assert torch.equal(got[130:], want[100:])


@needed
def test_large_scores_and_far_apart() -> None:
    """Maxima that grow from block to block by more than e⁻ˣ has room for, and shrink."""
    parts = states(scale=30.0)
    got = tree_attention(*parts, NODES, scale=0.5, backend="native")
    want, bound = exact(parts, NODES, 0.5, None)
    assert got.isfinite().all()
    # To first order the bound is a few thousandths here; what it says is beyond f32's exponents.
    assert ((got.double() - want).abs() <= bound).all()


@needed
def test_what_is_not_finite_stays_with_those_who_see_it() -> None:
    parts = states()
    want = tree_attention(*parts, NODES, scale=0.125, backend="native")
    key = parts[1].clone()
    key[:, 330] = torch.nan  # in the node of rows 300 to 349, which nobody else sees
    got = tree_attention(parts[0], key, parts[2], NODES, scale=0.125, backend="native")
    assert got[330:350].isnan().all()
    others = torch.ones(NODES.rows, dtype=torch.bool)
    others[300:350] = False
    assert torch.equal(got[others], want[others])


@needed
@dtypes
def test_it_is_chosen_on_the_cpu(dtype: torch.dtype) -> None:
    assert registry.resolve("tree_attention").backend == "native"
    assert registry.resolve("tree_attention", device="cuda").backend == "reference"
    assert not native.serves(torch.float16, 64)
    assert not native.serves(dtype, MOST_SIZE + 1)
    with pytest.raises(ValueError, match=f"takes no {dtype} of size 257 on this processor"):
        tree_attention(*states(size=257, dtype=dtype), NODES, scale=1.0, backend="native")


def call(
    query: torch.Tensor | None = None,
    key: torch.Tensor | None = None,
    value: torch.Tensor | None = None,
    window: int | None = None,
) -> Callable[[], object]:
    """A call with some of its tensors replaced."""
    parts = (
        own if other is None else other
        for own, other in zip(states(size=4), (query, key, value), strict=True)
    )
    x, y, z = parts
    return lambda: tree_attention(x, y, z, NODES, scale=1.0, window=window)


REFUSED: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "a double": (call(query=torch.zeros(4, 530, 4).double()), TypeError,
                 "query is torch.float64 and query torch.float64, expected all float32 or all"),
    "mixed": (call(key=torch.zeros(2, 530, 4, dtype=BF16)), TypeError,
              "key is torch.bfloat16 and query torch.float32, expected all float32 or all"),
    "columns first": (call(value=torch.zeros(2, 4, 530).transpose(1, 2)), ValueError,
                      "value has shape [2, 530, 4] and strides [2120, 1, 530] on cpu, expected"),
    "other rows": (call(key=torch.zeros(2, 529, 4)), ValueError,
                   "[4, 530, 4], [2, 529, 4] and [2, 530, 4] for nodes of 530 rows, expected"),
    "other groups": (call(query=torch.zeros(5, 530, 4)), ValueError, "a multiple of the key's"),
    "no window": (call(window=0), ValueError, "window is 0, expected 1 or more, or None"),
    "a gap": (lambda: Nodes([(0, 2), (3, 4)], [[(0, 2)], [(0, 4)]]), ValueError,
              "node 1 has rows 3 to 4 and sees [(0, 4)], expected rows from 2 on and spans of"),
    "the future": (lambda: Nodes([(0, 2), (2, 4)], [[(0, 3)], [(0, 4)]]), ValueError,
                   "node 0 has rows 0 to 2 and sees [(0, 3)], expected rows from 0 on"),
    "not itself": (lambda: Nodes([(0, 2), (2, 4)], [[(0, 2)], [(0, 2)]]), ValueError,
                   "node 1 has rows 2 to 4 and sees [(0, 2)], expected"),
    "itself in part": (lambda: Nodes([(0, 2), (2, 4)], [[(0, 2)], [(0, 2), (3, 4)]]), ValueError,
                       "expected its own rows at the end of the last span"),
}  # fmt: skip


@pytest.mark.parametrize("case", list(REFUSED))
def test_what_does_not_fit_is_refused(case: str) -> None:
    run, error, text = REFUSED[case]
    with pytest.raises(error, match=re.escape(text)):
        run()


def test_nodes_are_what_the_native_code_reads() -> None:
    assert NODES.nodes.dtype == NODES.spans.dtype == np.int64
    assert NODES.nodes[2].tolist() == [300, 350, 130, 2, 4]
    assert NODES.spans[2:4].tolist() == [[0, 130], [300, 350]]
