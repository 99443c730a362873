"""Where figures are drawn: matplotlib's settings, files as bytes, and SVG for the page.

On the page the colours of text and lines are the style sheet's, so that figures follow the
reader's light or dark theme; data keep their own.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from typing import Any

from avops.errors import MissingExtraError

FORMATS = ("png", "svg")
_DPI = 160


@dataclass(frozen=True)
class Ink:
    """Colours of all that is no data."""

    text: str
    muted: str
    rule: str
    paper: str


_FILE = Ink(text="#1c2127", muted="#5c6570", rule="#c5cbd3", paper="#ffffff")
# Stand-ins that the page's style sheet gives a value.
_PAGE = Ink(text="#010203", muted="#010204", rule="#010205", paper="#010206")
_VARIABLES = {"text": "ink", "muted": "muted", "rule": "rule", "paper": "paper"}

Draw = Callable[[Ink], Any]


def require_matplotlib() -> Any:
    """Matplotlib. Raises MissingExtraError where it is not installed."""
    try:
        import matplotlib as mpl
        import matplotlib.figure
    except ImportError:
        raise MissingExtraError("matplotlib", "score", "drawing the report's figures") from None
    return mpl


def new_figure(width: float, height: float) -> Any:
    """An empty figure, in inches, whose parts are laid out without overlap."""
    return require_matplotlib().figure.Figure(figsize=(width, height), layout="constrained")


def to_file(draw: Draw, format: str) -> bytes:  # noqa: A002
    """What ``draw`` makes, as the bytes of a PNG or SVG file. The same data give the same bytes."""
    with require_matplotlib().rc_context(_settings(_FILE, fonttype="path")):
        return _saved(draw(_FILE), format, _FILE)


def to_page(draw: Draw, name: str, alt: str) -> str:
    """What ``draw`` makes, as an SVG element for the page; ``alt`` says what there is to see.

    name: of letters; it keeps the element's ids apart from those of other figures.
    """
    with require_matplotlib().rc_context(_settings(_PAGE, fonttype="none")):
        text = _saved(draw(_PAGE), "svg", _PAGE).decode("utf-8")
    for field, variable in _VARIABLES.items():
        text = text.replace(getattr(_PAGE, field), f"var(--{variable})")
    text = text[text.index("<svg") :]
    dropped = r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->|xlink:(?=href)"
    text = re.sub(dropped, "", text, flags=re.DOTALL)
    text = re.sub(r'( id="| href="#|url\(#)', rf"\1{name}-", text)
    text = re.sub(r"; font-family: [^;\"]*", "", text)
    text = re.sub(r"\n\s*", "\n", text)
    width, height = re.findall(r'(?:width|height)="([\d.]+)pt"', text)[:2]
    head = (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(alt)}" '
        'stroke-linejoin="round">'
    )
    return head + text[text.index(">") + 1 :]


def _saved(figure: Any, format: str, ink: Ink) -> bytes:  # noqa: A002
    data = io.BytesIO()
    figure.savefig(
        data,
        format=format,
        dpi=_DPI,
        facecolor="none" if ink is _PAGE else ink.paper,
        metadata={"Date": None, "Creator": None} if format == "svg" else {"Software": None},
    )
    return data.getvalue()


def _settings(ink: Ink, fonttype: str) -> dict[str, Any]:
    """rcParams: small type, thin lines, nothing random in what is written."""
    return {
        "font.family": "DejaVu Sans",
        "font.size": 9,
        "axes.titlesize": 9.5,
        "axes.labelsize": 9,
        "xtick.labelsize": 8,
        "ytick.labelsize": 8,
        "legend.fontsize": 8.5,
        "legend.frameon": False,
        "text.color": ink.text,
        "axes.labelcolor": ink.text,
        "axes.edgecolor": ink.muted,
        "axes.titlecolor": ink.text,
        "axes.facecolor": "none",
        "axes.linewidth": 0.7,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "xtick.color": ink.muted,
        "ytick.color": ink.muted,
        "xtick.labelcolor": ink.text,
        "ytick.labelcolor": ink.text,
        "grid.color": ink.rule,
        "grid.linewidth": 0.5,
        "hatch.linewidth": 0.5,
        "hatch.color": ink.muted,
        "svg.fonttype": fonttype,
        "svg.hashsalt": "avops",
        "axes.unicode_minus": True,
    }
