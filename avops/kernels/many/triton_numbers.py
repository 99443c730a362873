# mypy: ignore-errors
# ruff: noqa: SIM108 - branches are compiled in Triton
"""Numbers in Triton: bits to f32 and back, both roundings, and the counts.

Patterns of 16 and 32 bits travel as uint32 `bits`; `code` is a dtype's (avops/dtypes.py), a
constexpr, or a number of the table. Reference: kernels/rounding.py and combine/reference.py.
Rounding to bf16 is done on the bits: the interpreter's own conversion truncates. f16's
conversions are the processor's, numpy's in the interpreter: both are exact or round to nearest
even, subnormals included.
"""

import triton
import triton.language as tl

F32 = tl.constexpr(0)
F16 = tl.constexpr(1)
BF16 = tl.constexpr(2)


@triton.jit
def widen(bits, code):
    """The f32 number that `bits` are, exactly."""
    if code == F32:
        value = bits.to(tl.float32, bitcast=True)
    elif code == BF16:
        value = (bits << 16).to(tl.float32, bitcast=True)
    else:
        value = bits.to(tl.uint16).to(tl.float16, bitcast=True).to(tl.float32)
    return value


@triton.jit
def nearest(value, code):
    """Bits of `value` in the dtype of `code`, to nearest, ties to even; any bits for NaN."""
    bits = value.to(tl.uint32, bitcast=True)
    if code == F32:
        result = bits
    elif code == BF16:
        # Just under half an ulp, plus one when the last kept bit is odd.
        result = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    else:
        result = value.to(tl.float16).to(tl.uint16, bitcast=True).to(tl.uint32)
    return result


@triton.jit
def words(key, index):
    """The two words of dither of the stretch of 2^32 indices that `index` is in. Scalars."""
    x = key.to(tl.uint64) + ((index.to(tl.uint64) >> 32) + 1) * 0x9E3779B97F4A7C15
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    x = x ^ (x >> 31)
    return x.to(tl.uint32), (x >> 32).to(tl.uint32)


@triton.jit
def dithered(value, index, one, two, code):
    """Bits of `value` rounded by dither; any bits for NaN. index: low words of flat indices."""
    r = index ^ one
    r = (r ^ (r >> 16)) * 0x7FEB352D + two
    r = (r ^ (r >> 15)) * 0x846CA68B
    r = r ^ (r >> 16)
    bits = value.to(tl.uint32, bitcast=True)
    if code == F32:
        result = bits
    elif code == BF16:
        result = (bits + (r >> 16)) >> 16
    else:
        size = bits & 0x7FFFFFFF
        u = r >> 19
        normal = (size - 0x38000000 + u) >> 13
        # In units of 2^-37: an ulp of 2^-24 has 2^13 of them; below 2^-14 all are under 2^23.
        small = tl.where(size < 0x38800000, size, 0x38800000).to(tl.float32, bitcast=True)
        subnormal = ((small * 137438953472.0).to(tl.int32).to(tl.uint32) + u) >> 13
        finite = tl.where(size < 0x38800000, subnormal, normal)
        result = ((bits >> 16) & 0x8000) | tl.where(size >= 0x47800000, 0x7C00, finite)
    return result


@triton.jit
def quiet(bits, value, code):
    """`bits`, with the dtype's one NaN where `value` is any."""
    is_nan = (value.to(tl.uint32, bitcast=True) & 0x7FFFFFFF) > 0x7F800000
    if code == F32:
        result = tl.where(is_nan, 0x7FC00000, bits)
    elif code == BF16:
        result = tl.where(is_nan, 0x7FC0, bits)
    else:
        result = tl.where(is_nan, 0x7E00, bits)
    return result


@triton.jit
def rounded(total, index, one, two, by_dither, code):
    """The bits of the output. one, two: the words of dither."""
    if by_dither:
        result = dithered(total, index, one, two, code)
    else:
        result = nearest(total, code)
    return quiet(result, total, code)


@triton.jit
def nothing(like):
    """A sum without terms: −0, which leaves every number that is added to it as it is."""
    zero = like.to(tl.uint32, bitcast=True) & 0
    return (zero | 0x80000000).to(tl.float32, bitcast=True)


@triton.jit
def unusual(value, code):
    """Whether `value` may become 0, infinite or NaN in the dtype of `code`, by either rounding."""
    size = value.to(tl.uint32, bitcast=True) & 0x7FFFFFFF
    if code == F32:
        found = size >= 0x7F800000
    elif code == BF16:
        # Below 2^-133, the least subnormal, or above the largest finite value.
        found = (size - 0x10000) > 0x7F7F0000 - 0x10000
    else:
        # The same for 2^-24 and 65504.
        found = (size - 0x33800000) > 0x477FE000 - 0x33800000
    return found


@triton.jit
def add(counts, found):
    """Add to a count, once for the block, and only if there is something to add."""
    number = tl.sum(found.to(tl.int32))
    if number != 0:
        tl.atomic_add(counts, number.to(tl.int64), sem="relaxed")


@triton.jit
def count_events(result, total, origin, mask, counts, code):
    """Add all four counts of a block that holds something unusual."""
    pattern = tl.where(code == F32, result, result << 16) & 0x7FFFFFFF
    infinity = tl.where(code == F16, 0x7C000000, 0x7F800000)
    size = total.to(tl.uint32, bitcast=True) & 0x7FFFFFFF
    nonfinite = (pattern >= infinity) & mask
    unchanged = (result == quiet(nearest(origin, code), origin, code)) & mask
    add(counts, nonfinite)
    add(counts + 1, unchanged)
    add(counts + 2, nonfinite & (size < 0x7F800000))
    add(counts + 3, (pattern == 0) & (size != 0) & mask)


@triton.jit
def count(result, total, origin, mask, counts, code):
    """Add to the counts of an entry; the number of unchanged elements, if it is yet to be added."""
    # One reduction finds the usual count, and whether there is need of the others. NaN is
    # unusual, so that the bits of the usual need no quiet().
    unchanged = (result == nearest(origin, code)) & mask
    rare = unusual(total, code) & mask
    number = tl.sum(unchanged.to(tl.int32) + (rare.to(tl.int32) << 16))
    if number >> 16 != 0:
        count_events(result, total, origin, mask, counts, code)
        number = 0
    return number


@triton.jit
def add_unchanged(counts, number):
    """Add what count() left to add."""
    if number != 0:
        tl.atomic_add(counts + 1, number.to(tl.int64), sem="relaxed")
