"""Colours: one per level, the same in every figure, and one per combination.

Levels take Okabe and Ito's palette, which colour-blind readers tell apart. No palette tells 27
combinations apart: hue, lightness and chroma say which level the first, second and third domain
has, and every area of the atlas bears its combination's number besides.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

LEVEL_COLOURS = ("#0072B2", "#E69F00", "#D55E00", "#009E73", "#CC79A7", "#56B4E9")
LEVEL_MARKERS = ("o", "s", "^", "D", "v", "P")

_HUES = (252.0, 95.0, 18.0, 155.0, 325.0, 205.0)  # degrees in OKLCH, near the levels' own colours
_LIGHT = (0.48, 0.85)  # darkest and lightest
_CHROMA = (0.15, 0.075)  # strongest and weakest
_SWAY = 18.0  # degrees by which the third domain's level also turns the hue


def level_colour(place: int) -> str:
    """The colour of the level at ``place``."""
    return LEVEL_COLOURS[place % len(LEVEL_COLOURS)]


def level_marker(place: int) -> str:
    """The marker of the level at ``place``, so that colour is not alone in telling it."""
    return LEVEL_MARKERS[place % len(LEVEL_MARKERS)]


def combination_rgb(levels: Sequence[int], count: int) -> tuple[float, float, float]:
    """The colour, each part in [0, 1], of a combination: a level (by number) per domain.

    count: how many levels there are.
    """
    first, second, *rest = (*levels, 0, 0)[: max(len(levels), 2)]
    rank = 0  # all further domains as one number
    for level in rest:
        rank = rank * count + level
    spread = rank / max(count ** len(rest) - 1, 1)
    share = second / max(count - 1, 1) if len(levels) > 1 else 0.4
    hue = _HUES[first % len(_HUES)] + _SWAY * (2 * spread - 1) * (len(rest) > 0)
    light = _LIGHT[0] + (_LIGHT[1] - _LIGHT[0]) * share
    chroma = _CHROMA[0] + (_CHROMA[1] - _CHROMA[0]) * spread
    return _from_oklch(light, chroma, hue)


def hex_of(rgb: Sequence[float]) -> str:
    """``rgb`` as ``#rrggbb``."""
    return "#" + "".join(f"{round(255 * part):02x}" for part in rgb)


def is_dark(rgb: Sequence[float]) -> bool:
    """Whether white text reads better on ``rgb`` than black (WCAG's relative luminance)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return luminance < 0.179  # where contrast with white and with black are equal


def _from_oklch(light: float, chroma: float, hue: float) -> tuple[float, float, float]:
    """OKLCH to sRGB, clipped into the gamut. Source: B. Ottosson, "A perceptual color space"."""
    a = chroma * math.cos(math.radians(hue))
    b = chroma * math.sin(math.radians(hue))
    long = (light + 0.3963377774 * a + 0.2158037573 * b) ** 3
    medium = (light - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (light - 0.0894841775 * a - 1.2914855480 * b) ** 3
    linear = (
        4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short,
        -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short,
        -0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short,
    )
    red, green, blue = (
        min(max(12.92 * c if c <= 0.0031308 else 1.055 * c ** (1 / 2.4) - 0.055, 0.0), 1.0)
        for c in linear
    )
    return red, green, blue
