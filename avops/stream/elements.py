"""What is in two arrays of one shape: how many elements differ, and by how much.

Two elements are equal when their values are, and a NaN equals any NaN. -0 and +0, and NaNs with
different payloads, are equal in value and differ in bits, and are counted apart.

ulp: of two elements of one floating dtype, how many steps from one to the other over the dtype's
values in order (-0 and +0 are one value). Of two dtypes, the exact difference in units of the
last place of the coarser dtype's element: half a unit at most for a correct conversion.
Sums are over elements that are finite in both. 8-bit floats and narrower ones mean nothing
without their scales: their bytes are compared, and there is no size of a difference.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from avops.dtypes import DType

# Bits of the fraction, and the exponent of the smallest normal number.
_FRACTION = {"BF16": (7, -126), "F16": (10, -14), "F32": (23, -126), "F64": (52, -1022)}
_INTEGERS = {"BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64"}
# float64 temporaries of this many elements stay in a core's cache.
_SLICE = 1 << 13

Array = np.ndarray


@dataclass
class Tally:
    """Sums over elements. ``elements`` are bytes where elements are no whole bytes.

    squares: of the first array's elements. difference: squares of differences, by part.
    """

    elements: int = 0
    differing: int = 0
    bits_only: int = 0
    nonfinite: tuple[int, int] = (0, 0)
    max_ulp: float = 0.0
    max_abs: float = 0.0
    squares: float = 0.0
    difference: float = 0.0

    def add(self, part: Tally) -> None:
        """Add what was seen elsewhere."""
        self.elements += part.elements
        self.differing += part.differing
        self.bits_only += part.bits_only
        (a, b), (more_a, more_b) = self.nonfinite, part.nonfinite
        self.nonfinite = (a + more_a, b + more_b)
        self.max_ulp = max(self.max_ulp, part.max_ulp)
        self.max_abs = max(self.max_abs, part.max_abs)
        self.squares += part.squares
        self.difference += part.difference


def comparable(one: DType, other: DType) -> bool:
    """Whether elements of these dtypes can be compared."""
    return one == other or (_numeric(one) and _numeric(other))


def sized(one: DType, other: DType) -> bool:
    """Whether a difference between elements of these dtypes has a size."""
    return _numeric(one) and _numeric(other)


def _numeric(dtype: DType) -> bool:
    return dtype.tag in _FRACTION or dtype.tag in _INTEGERS


def tally(raw_a: Array, raw_b: Array, a: DType, b: DType) -> Tally:
    """Compare two arrays of bytes: elements of dtype ``a`` and of dtype ``b``, equally many.

    The dtypes are comparable.
    """
    if not sized(a, b):
        unit = a.bits // 8 if a.bits % 8 == 0 else 1
        one, two = raw_a.view(f"<u{unit}"), raw_b.view(f"<u{unit}")
        return Tally(one.size, int(np.count_nonzero(one != two)))
    one, two = raw_a.view(a.storage), raw_b.view(b.storage)
    total = Tally()
    for start in range(0, one.size, _SLICE):
        part = slice(start, start + _SLICE)
        total.add(_slice_tally(one[part], two[part], a, b))
    return total


def _slice_tally(one: Array, two: Array, a: DType, b: DType) -> Tally:
    wide_a, wide_b = _wide(one, a), _wide(two, b)
    finite_a, finite_b = np.isfinite(wide_a), np.isfinite(wide_b)
    found = Tally(one.size)
    lost = one.size - np.count_nonzero(finite_a), one.size - np.count_nonzero(finite_b)
    found.nonfinite = (int(lost[0]), int(lost[1]))
    unequal = _unequal(one, two, wide_a, wide_b, a, b)
    found.differing = int(np.count_nonzero(unequal))
    found.bits_only = _bits_only(one, two, wide_a, wide_b, unequal, a == b)
    if any(lost):
        # Equal and finite: adds nothing to any sum below.
        kept = finite_a & finite_b
        one, two = np.where(kept, one, one.dtype.type(0)), np.where(kept, two, two.dtype.type(0))
        wide_a, wide_b = np.where(kept, wide_a, 0.0), np.where(kept, wide_b, 0.0)
    with np.errstate(over="ignore"):
        found.squares = float(np.einsum("i,i->", wide_a, wide_a))
    if found.differing:
        _measure(found, (one, two), (wide_a, wide_b), (a, b))
    return found


def _wide(values: Array, dtype: DType) -> Array:
    """The values in float64, exactly but for integers beyond 2^53."""
    if dtype.tag == "BF16":
        shifted: Array = np.left_shift(values, 16, dtype=np.uint32)
        values = shifted.view(np.float32)
    with np.errstate(invalid="ignore"):
        # Converting a signalling NaN is no mistake here.
        wide: Array = values.astype(np.float64)
    return wide


def _unequal(one: Array, two: Array, wide_a: Array, wide_b: Array, a: DType, b: DType) -> Array:
    """Where the values differ."""
    unequal: Array
    if a.tag in _INTEGERS and b.tag in _INTEGERS:
        # numpy compares integers of any two dtypes exactly.
        unequal = one != two
        return unequal
    unequal = wide_a != wide_b
    both_nan = np.isnan(wide_a)
    if both_nan.any():
        unequal &= ~(both_nan & np.isnan(wide_b))
    return unequal


def _bits_only(
    one: Array, two: Array, wide_a: Array, wide_b: Array, unequal: Array, same: bool
) -> int:
    """How many elements are equal in value, but not in bits; in two dtypes, but not in sign."""
    if same:
        bits = f"<u{one.dtype.itemsize}"
        different = one.view(bits) != two.view(bits)
    else:
        different = np.signbit(wide_a) != np.signbit(wide_b)
    return int(np.count_nonzero(different & ~unequal))


def _measure(
    found: Tally, raw: tuple[Array, Array], wide: tuple[Array, Array], dtypes: tuple[DType, DType]
) -> None:
    """Sizes of the differences between finite elements."""
    with np.errstate(over="ignore", invalid="ignore"):
        difference = wide[0] - wide[1]
        found.difference = float(np.einsum("i,i->", difference, difference))
    sizes = np.abs(difference)
    found.max_abs = float(sizes.max())
    a, b = dtypes
    if a == b and a.tag in _FRACTION:
        found.max_ulp = float(_steps(*raw).max())
    elif a.tag in _FRACTION and b.tag in _FRACTION:
        (fraction, smallest), coarser = min((_FRACTION[a.tag], 0), (_FRACTION[b.tag], 1))
        _, exponent = np.frexp(wide[coarser])
        # frexp gives x = m · 2^e with m in [0.5, 1), so the leading bit is worth 2^(e - 1).
        leading = np.where(wide[coarser] == 0, smallest, np.maximum(exponent - 1, smallest))
        found.max_ulp = float(np.ldexp(sizes, fraction - leading).max())


def _steps(one: Array, two: Array) -> Array:
    """Distance in the order of the dtype's values; in float64 once it passes 2^52."""
    first, second = _ordered(one), _ordered(two)
    steps: Array = np.abs(first - second)
    if one.dtype.itemsize == 8:
        # Of two float64 the distance may pass 2^63.
        far: Array = np.abs(first.astype(np.float64) - second.astype(np.float64))
        return np.where(far < 2.0**52, steps.astype(np.float64), far)
    return steps


def _ordered(values: Array) -> Array:
    """Integers in the order of the floating values: -0 and +0 are both 0."""
    width = values.dtype.itemsize
    bits: Array = values.view(f"<i{width}").astype(np.int32 if width == 2 else np.int64)
    sign = np.right_shift(bits, 8 * width - 1)
    magnitude = np.bitwise_and(bits, (1 << (8 * width - 1)) - 1)
    ordered: Array = np.subtract(np.bitwise_xor(magnitude, sign), sign)
    return ordered
