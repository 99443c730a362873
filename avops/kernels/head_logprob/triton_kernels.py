# mypy: ignore-errors
# ruff: noqa: N803 - constants are upper-case in Triton
"""head_logprob's Triton kernels. Contract: head_logprob/__init__.py.

A program has ROWS rows and a fixed SPLIT of the vocabulary: it multiplies tile after tile with f32
accumulation and folds each into its rows' maximum and sum, so logits live in registers only. A
second kernel merges the splits of a row in order, in f64. The splits depend on the vocabulary
alone, so a row's bits do not depend on the other rows.

Imported only where Triton computes, see logprob/triton_kernels.py; launch with
enable_fp_fusion=False.
"""

import triton
import triton.language as tl

from avops.kernels.logprob.triton_kernels import finish, fold, shape


@triton.jit
def partial(
    hidden,
    weight,
    bias,
    targets,
    maxima,
    totals,
    picked,
    rows,
    vocabulary,
    dim,
    multiply,
    divide,
    softcap,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    SPLIT: tl.constexpr,
    WIDEN: tl.constexpr,
    BIAS: tl.constexpr,
    MULTIPLY: tl.constexpr,
    DIVIDE: tl.constexpr,
    SOFTCAP: tl.constexpr,
):
    """maxima, totals: [splits, rows]. picked: [rows], written by the split that has the target."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    here = row < rows
    first = tl.program_id(1) * SPLIT
    last = tl.minimum(first + SPLIT, vocabulary)
    target = tl.load(targets + row, mask=here, other=-1)
    maximum = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    found = tl.zeros([ROWS], tl.float32)
    depth = tl.arange(0, DEPTH)
    for start in range(first, last, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        there = column < last
        x = tl.zeros([ROWS, COLUMNS], tl.float32)
        left = hidden + row.to(tl.int64)[:, None] * dim + depth[None, :]
        right = weight + column.to(tl.int64)[None, :] * dim + depth[:, None]
        for done in range(0, dim, DEPTH):
            inside = done + depth < dim
            one = tl.load(left + done, mask=here[:, None] & inside[None, :], other=0.0)
            two = tl.load(right + done, mask=there[None, :] & inside[:, None], other=0.0)
            if WIDEN:
                one = one.to(tl.float32)
                two = two.to(tl.float32)
            x = tl.dot(one, two, x, input_precision="ieee")
        if BIAS:
            x += tl.load(bias + column, mask=there, other=0.0).to(tl.float32)[None, :]
        x = shape(x, multiply, divide, softcap, MULTIPLY, DIVIDE, SOFTCAP)
        x = tl.where(there[None, :], x, float("-inf"))
        maximum, total = fold(x, maximum, total, 1)
        hit = (target[:, None] == column[None, :]) & there[None, :]
        found += tl.sum(tl.where(hit, x, 0.0), 1)
    place = tl.program_id(1).to(tl.int64) * rows + row
    tl.store(maxima + place, maximum, mask=here)
    tl.store(totals + place, total, mask=here)
    mine = here & (target >= first) & (target < last)
    tl.store(picked + row, found, mask=mine)


@triton.jit
def merge(maxima, totals, picked, targets, out, rows, vocabulary, splits, ROWS: tl.constexpr):
    """Write out from all splits, in order."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    here = row < rows
    maximum = tl.full([ROWS], float("-inf"), tl.float32)
    for split in range(splits):
        place = tl.cast(split, tl.int64) * rows + row
        found = tl.load(maxima + place, mask=here, other=float("-inf"))
        maximum = tl.maximum(maximum, found)
    origin = tl.where(maximum == float("-inf"), 0.0, maximum)
    total = tl.zeros([ROWS], tl.float64)
    for split in range(splits):
        place = tl.cast(split, tl.int64) * rows + row
        found = tl.load(maxima + place, mask=here, other=float("-inf"))
        below = found.to(tl.float64) - origin.to(tl.float64)
        # A split without maximum has a sum of 0, or NaN.
        scale = tl.where(found == float("-inf"), 1.0, tl.exp(below))
        total += tl.load(totals + place, mask=here, other=0.0).to(tl.float64) * scale
    target = tl.load(targets + row, mask=here, other=-1)
    mine = (target >= 0) & (target < vocabulary)
    logit = tl.load(picked + row, mask=here & mine, other=float("nan"))
    tl.store(out + row, finish(logit, maximum, total), mask=here)
