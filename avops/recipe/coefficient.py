"""Coefficients: decimal text to float32, rounded once.

Going through a double would round twice, so the nearest float32 is found exactly.
"""

from __future__ import annotations

import re
import struct
from decimal import Decimal, InvalidOperation
from fractions import Fraction

from avops.errors import RecipeError

_DECIMAL = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_RATIO = re.compile(r"([+-]?[0-9]{1,400})/([0-9]{1,400})")
_MAX_POINTS = 10_000
_SMALLEST, _LARGEST = -60, 40  # decimal exponents; outside, the float32 is known: 0 or infinite


def round_f32(value: Decimal | Fraction) -> float:
    """The float32 nearest to ``value`` (ties to even), as a Python float.

    Raises OverflowError when the nearest float32 would be infinite.
    """
    exact = Fraction(value)
    (guess,) = struct.unpack("<f", struct.pack("<f", float(exact)))
    (bits,) = struct.unpack("<I", struct.pack("<f", abs(guess)))
    best: tuple[Fraction, int, float] | None = None
    for candidate in (bits - 1, bits, bits + 1):
        if not 0 <= candidate < 0x7F800000:
            continue
        (magnitude,) = struct.unpack("<f", struct.pack("<I", candidate))
        key = (abs(Fraction(magnitude) - abs(exact)), candidate & 1, magnitude)
        best = key if best is None else min(best, key)
    assert best is not None
    return -best[2] if exact < 0 else best[2]


def is_decimal(text: str) -> bool:
    """Whether ``text`` is a decimal number."""
    return _DECIMAL.fullmatch(text) is not None


def parse_decimal(text: str, where: str, *, what: str = "λ") -> Decimal:
    """The decimal number ``text``. Raises RecipeError naming ``where`` for anything else."""
    try:
        if not is_decimal(text):
            raise InvalidOperation
        return Decimal(text)
    except InvalidOperation:  # also for exponents beyond decimal's own limits
        minus = text[:1] in ("−", "–", "—")
        hint = f"; {text[0]!r} is no hyphen, write -{text[1:]}" if minus else ""
        raise RecipeError(
            f"{where}: {what} is {text!r}, expected a finite decimal number such as -1, .6 or 0.25"
            f"{hint}"
        ) from None


def parse_lam(text: str, where: str, *, what: str = "λ") -> float:
    """The coefficient ``text`` as a float32 value. Raises RecipeError naming ``where``."""
    return round_lam(parse_exact(text, where, what=what), where, text, what=what)


def parse_exact(text: str, where: str, *, what: str = "λ") -> Fraction:
    """The number ``text``, exactly: a decimal, or a ratio such as ``1/3``.

    Zero below 1e-60, where every float32 is zero. Raises RecipeError naming ``where``.
    """
    if ratio := _RATIO.fullmatch(text):
        if int(ratio[2]) == 0:
            raise RecipeError(f"{where}: {what} is {text!r}, expected a denominator above 0")
        return Fraction(int(ratio[1]), int(ratio[2]))
    value = parse_decimal(text, where, what=what)
    # Fraction(Decimal("1e999999")) would exhaust memory.
    if not value or value.adjusted() < _SMALLEST:
        return Fraction(0)
    if value.adjusted() > _LARGEST:
        raise _infinite(text, where, what)
    return Fraction(value)


def round_lam(exact: Fraction, where: str, text: str = "", *, what: str = "λ") -> float:
    """``exact`` as a float32 value, rounded once; ``text`` is how it was written.

    Raises RecipeError naming ``where`` where it is infinite.
    """
    try:
        return round_f32(exact)
    except OverflowError:
        raise _infinite(text or exact_text(exact), where, what) from None


def exact_text(exact: Fraction) -> str:
    """``exact`` as a plain decimal where it has one of at most 60 places, otherwise as a ratio.

    ``parse_exact`` gives the same number back.
    """
    for places in range(61):
        if (exact * 10**places).denominator == 1:
            digits = f"{abs(exact.numerator) * 10**places // exact.denominator:0{places + 1}d}"
            sign = "-" if exact < 0 else ""
            return sign + (f"{digits[:-places]}.{digits[-places:]}" if places else digits)
    return str(exact)


def plain_text(text: str) -> str:
    """The decimal number ``text`` in its shortest plain form: ``-.50`` becomes ``-0.5``."""
    return _plain(Decimal(text))


def _infinite(text: str, where: str, what: str) -> RecipeError:
    return RecipeError(
        f"{where}: {what} is {text!r}, which is not finite in float32 (largest 3.4e38); "
        "coefficients are usually between -2 and 2"
    )


def parse_range(text: str, where: str) -> tuple[str, ...]:
    """The points of ``START:STOP:STEP``, both ends included, as exact decimal texts.

    Raises RecipeError naming ``where`` for a malformed, empty or huge range.
    """
    parts = text.split(":")
    if len(parts) != 3:
        raise RecipeError(f"{where}: range is {text!r}, expected START:STOP:STEP such as -1.5:1:.1")
    start, stop, step = (parse_decimal(part, where) for part in parts)
    for part in parts:
        parse_lam(part, where)
    if step <= 0 or stop < start:
        raise RecipeError(
            f"{where}: range is {text!r}, expected START ≤ STOP and STEP > 0 such as -1.5:1:.1"
        )
    count = int((stop - start) / step) + 1
    if count > _MAX_POINTS:
        raise RecipeError(
            f"{where}: range {text!r} has {count} points, expected at most {_MAX_POINTS}; "
            "use a larger STEP"
        )
    return tuple(_plain(start + i * step) for i in range(count))


def _plain(value: Decimal) -> str:
    return format(value.normalize() + 0, "f")
