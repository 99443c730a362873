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
# Elements at a time: float64 temporaries of that many stay in a core's cache.
_SLICE = 1 << 16

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


class Comparer:
    """Compares arrays of bytes. Its memory is reused: one for each thread."""

    def __init__(self) -> None:
        self._wide = [np.empty(_SLICE, np.float64) for _ in range(2)]
        self._ordered = [np.empty(_SLICE, np.int64) for _ in range(3)]
        self._flags = [np.empty(_SLICE, np.bool_) for _ in range(2)]

    def tally(self, raw_a: Array, raw_b: Array, a: DType, b: DType) -> Tally:
        """Compare elements of dtype ``a`` with as many of dtype ``b``, which is comparable."""
        if not sized(a, b):
            unit = a.bits // 8 if a.bits % 8 == 0 else 1
            one, two = raw_a.view(f"<u{unit}"), raw_b.view(f"<u{unit}")
            return Tally(one.size, int(np.count_nonzero(one != two)))
        one, two = raw_a.view(a.storage), raw_b.view(b.storage)
        total = Tally()
        for start in range(0, one.size, _SLICE):
            part = slice(start, start + _SLICE)
            total.add(self._slice(one[part], two[part], a, b))
        return total

    def _slice(self, one: Array, two: Array, a: DType, b: DType) -> Tally:
        wide_a, wide_b = self._widen(0, one, a), self._widen(1, two, b)
        found = Tally(one.size)
        unequal, same_bits = self._flags[0][: one.size], self._flags[1][: one.size]
        if a.tag in _INTEGERS and b.tag in _INTEGERS:
            # numpy compares integers of any two dtypes exactly.
            np.not_equal(one, two, out=unequal)
        else:
            np.not_equal(wide_a, wide_b, out=unequal)
        if a == b:
            bits = f"<u{a.size}"
            np.equal(one.view(bits), two.view(bits), out=same_bits)
        else:
            np.equal(np.signbit(wide_a), np.signbit(wide_b), out=same_bits)
        if a.tag in _FRACTION or b.tag in _FRACTION:
            one, two = self._set_nonfinite_apart(found, (one, two), unequal)
        found.differing = int(np.count_nonzero(unequal))
        found.bits_only = one.size - int(
            np.count_nonzero(np.logical_or(unequal, same_bits, out=same_bits))
        )
        with np.errstate(over="ignore"):
            found.squares = float(np.einsum("i,i->", wide_a, wide_a))
        if found.differing:
            self._measure(found, one, two, a, b)
        return found

    def _widen(self, which: int, values: Array, dtype: DType) -> Array:
        """The values in float64, exactly but for integers beyond 2^53."""
        wide = self._wide[which][: values.size]
        if dtype.tag == "BF16":
            shifted = self._ordered[which].view(np.uint32)[: values.size]
            np.left_shift(values, 16, out=shifted, dtype=np.uint32)
            values = shifted.view(np.float32)
        with np.errstate(invalid="ignore"):
            # A signalling NaN is no mistake here.
            np.copyto(wide, values, casting="unsafe")
        return wide

    def _set_nonfinite_apart(
        self, found: Tally, raw: tuple[Array, Array], unequal: Array
    ) -> tuple[Array, Array]:
        """Count what is not finite, and put zeros where either is not: they add nothing below.

        Two NaNs are equal.
        """
        size = unequal.size
        wide_a, wide_b = (wide[:size] for wide in self._wide)
        with np.errstate(over="ignore", invalid="ignore"):
            # A sum is finite only if all its terms are; if it is not, they are looked at.
            if np.isfinite(wide_a.sum()) and np.isfinite(wide_b.sum()):
                return raw
        finite = [np.isfinite(wide) for wide in (wide_a, wide_b)]
        found.nonfinite = (
            size - int(np.count_nonzero(finite[0])),
            size - int(np.count_nonzero(finite[1])),
        )
        unequal &= ~(np.isnan(wide_a) & np.isnan(wide_b))
        lost = ~(finite[0] & finite[1])
        wide_a[lost] = wide_b[lost] = 0.0
        one, two = (np.where(lost, values.dtype.type(0), values) for values in raw)
        return one, two

    def _measure(self, found: Tally, one: Array, two: Array, a: DType, b: DType) -> None:
        """Sizes of the differences between finite elements."""
        size = one.size
        wide_a, wide_b = (wide[:size] for wide in self._wide)
        if a == b and a.tag in _FRACTION:
            found.max_ulp = self._steps(one, two)
        both = a != b and a.tag in _FRACTION and b.tag in _FRACTION
        units = _units(wide_a, wide_b, a, b) if both else None
        with np.errstate(over="ignore", invalid="ignore"):
            sizes = np.subtract(wide_a, wide_b, out=wide_b)
            found.difference = float(np.einsum("i,i->", sizes, sizes))
        np.abs(sizes, out=sizes)
        found.max_abs = float(sizes.max())
        if units is not None:
            found.max_ulp = float(np.ldexp(sizes, units).max())

    def _steps(self, one: Array, two: Array) -> float:
        """The longest way in the order of the dtype's values; rounded once it passes 2^53."""
        width = one.dtype.itemsize
        integer = np.int32 if width == 2 else np.int64
        first, second, sign = (o.view(integer)[: one.size] for o in self._ordered)
        for values, ordered in ((one, first), (two, second)):
            # -0 and +0 are both 0, and negative values count downwards.
            np.copyto(ordered, values.view(f"<i{width}"))
            np.right_shift(ordered, 8 * width - 1, out=sign)
            np.bitwise_and(ordered, (1 << (8 * width - 1)) - 1, out=ordered)
            np.bitwise_xor(ordered, sign, out=ordered)
            np.subtract(ordered, sign, out=ordered)
        if width < 8:
            np.subtract(first, second, out=first)
            return float(np.abs(first, out=first).max())
        # Of two float64 the distance may pass 2^63.
        far = np.abs(first.astype(np.float64) - second.astype(np.float64))
        near = np.abs(np.subtract(first, second, out=first)).astype(np.float64)
        return float(np.where(far < 2.0**52, near, far).max())


def _units(wide_a: Array, wide_b: Array, a: DType, b: DType) -> Array:
    """Exponents n with 2^-n the unit in the last place of the coarser dtype's elements."""
    (fraction, smallest), coarser = min((_FRACTION[a.tag], 0), (_FRACTION[b.tag], 1))
    values = (wide_a, wide_b)[coarser]
    _, exponent = np.frexp(values)
    # frexp gives x = m · 2^e with m in [0.5, 1), so the leading bit is worth 2^(e - 1).
    leading = np.where(values == 0, smallest, np.maximum(exponent - 1, smallest))
    units: Array = fraction - leading
    return units
