# mypy: ignore-errors
# ruff: noqa: N803 - constants are upper-case in Triton
"""combine_many's Triton kernels. Contract: many/__init__.py; arithmetic: combine and lowrank.

Imported only where Triton computes: `triton.jit` decides at import whether it compiles or, with
TRITON_INTERPRET=1, interprets. Not typed: the bodies are Triton's language, not Python's.

Bits and codes are those of triton_numbers.py. A code is a constexpr in `dense`, where its branches
vanish, and a number of the table in the others. No product may be fused with a sum: launch with
enable_fp_fusion=False.
"""

import triton
import triton.language as tl

from avops.kernels.many.triton_numbers import (
    F32,
    add_unchanged,
    count,
    nothing,
    rounded,
    widen,
    words,
)

# Columns and flags of layout.py's rows; tests hold them to it.
ROW = tl.constexpr(8)
BASE = tl.constexpr(0)
OUT = tl.constexpr(1)
COUNT = tl.constexpr(2)
KEY = tl.constexpr(3)
MODE = tl.constexpr(4)
ADDRESS = tl.constexpr(0)
KIND = tl.constexpr(1)
RIGHT = tl.constexpr(2)
RANK = tl.constexpr(3)
COLUMNS = tl.constexpr(4)
SCALE = tl.constexpr(5)
ALIGNED = tl.constexpr(4)
LOW_RANK = tl.constexpr(8)
DITHER = tl.constexpr(16)


@triton.jit
def _fetch(address, start, offsets, mask, code, VECTOR: tl.constexpr):
    """Elements start + offsets of the values at `address`: their bits; 0 where masked."""
    if code == F32:
        wide = address.to(tl.pointer_type(tl.uint32)) + start
        if VECTOR:
            wide = tl.multiple_of(wide, 16)
        bits = tl.load(wide + offsets, mask=mask, other=0)
    else:
        narrow = address.to(tl.pointer_type(tl.uint16)) + start
        if VECTOR:
            narrow = tl.multiple_of(narrow, 16)
        bits = tl.load(narrow + offsets, mask=mask, other=0).to(tl.uint32)
    return bits


@triton.jit
def _put(address, start, offsets, mask, bits, code, VECTOR: tl.constexpr):
    if code == F32:
        wide = address.to(tl.pointer_type(tl.uint32)) + start
        if VECTOR:
            wide = tl.multiple_of(wide, 16)
        tl.store(wide + offsets, bits, mask=mask)
    else:
        narrow = address.to(tl.pointer_type(tl.uint16)) + start
        if VECTOR:
            narrow = tl.multiple_of(narrow, 16)
        tl.store(narrow + offsets, bits.to(tl.uint16), mask=mask)


@triton.jit
def _product(part, row, column, columns, mask):
    """Δ of a low-rank part at (row, column): the sum in the order of the rank."""
    left = tl.load(part + ADDRESS).to(tl.pointer_type(tl.float32)) + row * tl.load(part + RANK)
    right = tl.load(part + RIGHT).to(tl.pointer_type(tl.float32)) + column
    scale = tl.load(part + SCALE).to(tl.uint32).to(tl.float32, bitcast=True)
    total = tl.load(left, mask=mask, other=0.0) * tl.load(right, mask=mask, other=0.0)
    for _ in range(1, tl.load(part + RANK)):
        left += 1
        right += columns
        one = tl.load(left, mask=mask, other=0.0)
        total = total + one * tl.load(right, mask=mask, other=0.0)
    return scale * total


@triton.jit
def _product_of_tile(part, row, last, column, columns, mask, VECTOR: tl.constexpr):
    """The same for four rows from `row` on and a block of columns: [columns, 2, 2].

    Rows are single numbers, and repeat the last one beyond it: so the block of `right` is loaded
    once for four, by threads that keep their columns, and each has its four sums to itself.
    """
    rank = tl.load(part + RANK)
    left = tl.load(part + ADDRESS).to(tl.pointer_type(tl.float32))
    left_0 = left + row * rank
    left_1 = left + tl.minimum(row + 1, last) * rank
    left_2 = left + tl.minimum(row + 2, last) * rank
    left_3 = left + tl.minimum(row + 3, last) * rank
    right = tl.load(part + RIGHT).to(tl.pointer_type(tl.float32))
    if VECTOR:
        right = tl.multiple_of(right, 16)
    right += column
    scale = tl.load(part + SCALE).to(tl.uint32).to(tl.float32, bitcast=True)
    values = tl.load(right, mask=mask, other=0.0)
    sum_0 = tl.load(left_0) * values
    sum_1 = tl.load(left_1) * values
    sum_2 = tl.load(left_2) * values
    sum_3 = tl.load(left_3) * values
    for j in range(1, rank):
        right += columns
        values = tl.load(right, mask=mask, other=0.0)
        sum_0 = sum_0 + tl.load(left_0 + j) * values
        sum_1 = sum_1 + tl.load(left_1 + j) * values
        sum_2 = sum_2 + tl.load(left_2 + j) * values
        sum_3 = sum_3 + tl.load(left_3 + j) * values
    return scale * tl.join(tl.join(sum_0, sum_2), tl.join(sum_1, sum_3))


@triton.jit
def _values(address, start, offsets, mask, origin, code, aligned, VECTOR: tl.constexpr):
    """Δ of a part that is stored; nothing is read, nor the result of use, where masked."""
    bits = _fetch(address, start, offsets, mask, code, VECTOR)
    delta = widen(bits, code)
    if aligned:
        delta = delta - origin
    return delta


@triton.jit(do_not_specialize=["terms"])
def dense(
    chunks,
    entries,
    parts,
    lams,
    counts,
    terms,
    SIZE: tl.constexpr,
    IN: tl.constexpr,
    CODE: tl.constexpr,
    DITHERED: tl.constexpr,
    VALUES: tl.constexpr,
    VALUES_ALIGNED: tl.constexpr,
    TERMS: tl.constexpr,
):
    """Whole blocks of SIZE elements of entries of one class, 16 bytes at a time.

    IN, CODE: codes of base and out. VALUES, VALUES_ALIGNED: of every part that is there. TERMS:
    how many, or -1 for a loop over `terms` of them. chunks: int32 [programs, 2], entry and block.
    """
    chunk = chunks + tl.program_id(0).to(tl.int64) * 2
    entry = tl.load(chunk).to(tl.int64)
    start = tl.load(chunk + 1).to(tl.int64) * SIZE
    row = entries + entry * ROW
    offsets = tl.arange(0, SIZE)
    mask = tl.full((SIZE,), 1, tl.int1)
    origin = widen(_fetch(tl.load(row + BASE), start, offsets, mask, IN, True), IN)
    acc = nothing(origin)
    first = entry * terms
    # Loads do not wait for one another: what λ = 0 or a missing part leaves out is masked, not
    # branched around.
    if TERMS >= 0:
        for term in tl.static_range(TERMS):
            lam = tl.load(lams + first + term)
            address = tl.load(parts + (first + term) * ROW + ADDRESS)
            used = tl.broadcast_to(tl.where(lam != 0, address, 0), (SIZE,)) != 0
            delta = _values(address, start, offsets, used, origin, VALUES, VALUES_ALIGNED, True)
            acc = tl.where(used, acc + lam * delta, acc)
    else:
        for term in range(terms):
            lam = tl.load(lams + first + term)
            address = tl.load(parts + (first + term) * ROW + ADDRESS)
            used = tl.broadcast_to(tl.where(lam != 0, address, 0), (SIZE,)) != 0
            delta = _values(address, start, offsets, used, origin, VALUES, VALUES_ALIGNED, True)
            acc = tl.where(used, acc + lam * delta, acc)
    total = origin + acc
    one, two = words(tl.load(row + KEY), start)
    index = (start + offsets).to(tl.uint32)
    result = rounded(total, index, one, two, DITHERED, CODE)
    _put(tl.load(row + OUT), start, offsets, mask, result, CODE, True)
    tally = counts + entry * 4
    add_unchanged(tally, count(result, total, origin, mask, tally, CODE))


@triton.jit(do_not_specialize=["terms"])
def flat(chunks, entries, parts, lams, counts, terms, SIZE: tl.constexpr):
    """Blocks of SIZE elements of any entries. chunks: int32 [programs, 2], entry and block."""
    chunk = chunks + tl.program_id(0).to(tl.int64) * 2
    entry = tl.load(chunk).to(tl.int64)
    start = tl.load(chunk + 1).to(tl.int64) * SIZE
    row = entries + entry * ROW
    mode = tl.load(row + MODE)
    base_code = mode & 3
    code = (mode >> 2) & 3
    offsets = tl.arange(0, SIZE)
    at = start + offsets
    mask = at < tl.load(row + COUNT)
    bits = _fetch(tl.load(row + BASE), start, offsets, mask, base_code, False)
    origin = widen(bits, base_code)
    acc = nothing(origin)
    for term in range(terms):
        lam = tl.load(lams + entry * terms + term)
        part = parts + (entry * terms + term) * ROW
        kind = tl.load(part + KIND)
        address = tl.load(part + ADDRESS)
        if (lam != 0) & (address != 0):
            if (kind & LOW_RANK) != 0:
                columns = tl.load(part + COLUMNS)
                delta = _product(part, at // columns, at % columns, columns, mask)
            else:
                aligned = (kind & ALIGNED) != 0
                delta = _values(address, start, offsets, mask, origin, kind & 3, aligned, False)
            acc = acc + lam * delta
    total = origin + acc
    one, two = words(tl.load(row + KEY), start)
    result = rounded(total, at.to(tl.uint32), one, two, (mode & DITHER) != 0, code)
    _put(tl.load(row + OUT), start, offsets, mask, result, code, False)
    tally = counts + entry * 4
    add_unchanged(tally, count(result, total, origin, mask, tally, code))


@triton.jit(do_not_specialize=["terms"])
def tiles(
    chunks,
    entries,
    parts,
    lams,
    counts,
    terms,
    ROWS: tl.constexpr,
    SIZE: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """Tiles of ROWS rows, four at a time, and SIZE columns of entries with low-rank parts.

    All of an entry's have one number of columns, four times which is less than 2^31. chunks:
    int32 [programs, 4], entry, first row, first column, columns. VECTOR: all addresses are
    multiples of 16 bytes, the columns of 8.
    """
    chunk = chunks + tl.program_id(0).to(tl.int64) * 4
    entry = tl.load(chunk).to(tl.int64)
    first_row = tl.load(chunk + 1).to(tl.int64)
    first_column = tl.multiple_of(tl.load(chunk + 2), SIZE)
    columns = tl.load(chunk + 3)
    across = first_column + tl.arange(0, SIZE)
    if VECTOR:
        columns = tl.multiple_of(columns, 8)
        # One condition for eight neighbours, which are loaded together.
        inside = across // 8 * 8 < columns
    else:
        inside = across < columns
    down = tl.arange(0, 2)[None, :, None] * 2 + tl.arange(0, 2)[None, None, :]
    offsets = down * columns + across[:, None, None]
    row = entries + entry * ROW
    mode = tl.load(row + MODE)
    base_code = mode & 3
    code = (mode >> 2) & 3
    base = tl.load(row + BASE)
    out = tl.load(row + OUT)
    one, two = words(tl.load(row + KEY), first_row * columns)
    rows = tl.load(row + COUNT) // columns
    tally = counts + entry * 4
    usual = 0
    for at in range(first_row, tl.minimum(first_row + ROWS, rows), 4):
        start = at * columns.to(tl.int64)
        mask = (at + down < rows) & inside[:, None, None]
        origin = widen(_fetch(base, start, offsets, mask, base_code, VECTOR), base_code)
        acc = nothing(origin)
        for term in range(terms):
            lam = tl.load(lams + entry * terms + term)
            part = parts + (entry * terms + term) * ROW
            kind = tl.load(part + KIND)
            address = tl.load(part + ADDRESS)
            if (lam != 0) & (address != 0):
                if (kind & LOW_RANK) != 0:
                    delta = _product_of_tile(part, at, rows - 1, across, columns, inside, VECTOR)
                else:
                    aligned = (kind & ALIGNED) != 0
                    delta = _values(
                        address, start, offsets, mask, origin, kind & 3, aligned, VECTOR
                    )
                acc = acc + lam * delta
        total = origin + acc
        index = (start + offsets).to(tl.uint32)
        result = rounded(total, index, one, two, (mode & DITHER) != 0, code)
        _put(out, start, offsets, mask, result, code, VECTOR)
        usual += count(result, total, origin, mask, tally, code)
    add_unchanged(tally, usual)
