"""The atlas: the space cut into planes, every cell in the colour of its combination.

Measured cells are solid and outlined; inferred ones are faint, the fainter the less sure, and
hatched. An area bears its combination's number.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from avops.search.report import cells
from avops.search.report.canvas import Ink, new_figure
from avops.search.report.palette import combination_rgb, is_dark

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from avops.search.report.data import Report

_COLUMNS = 5
_DENSE = 0.4  # share of measured cells from which outlines would hide what they outline
_PALE = (0.25, 0.35)  # opacity of an inferred cell: the least, and what certainty adds
_NONE = 0.55  # grey of cells in which some domain has no dominant level
_MAX_LEGEND = 81
_ROOM = 3  # empty panels beside each other that can hold the legend,
_ROOM_FOR = 10  # if it has at most so many combinations for each


def draw(report: Report, ink: Ink) -> Any:
    """All planes, the axes' names, and a legend of the combinations that occur."""
    atlas = cells.atlas_of(report)
    count = len(atlas.slices)
    columns = min(count, _COLUMNS)
    lines = -(-count // columns)
    found = cells.present(atlas)[:_MAX_LEGEND]
    wide = atlas.y is None
    across = 9.0 if wide else max(2.0 * columns, 4.6)
    tall = 0.9 if wide else (2.02 if columns > 1 else 4.2) * lines
    per_line = max(1, int(across / (0.5 + 0.42 * len(report.part.domains))))
    blank = lines * columns - count
    inside = blank >= _ROOM and len(found) <= _ROOM_FOR * blank
    below = 0.3 if inside else 0.6 + 0.17 * -(-(len(found) + 3) // per_line)
    figure = new_figure(across + 0.5, tall + 0.3 + below)
    panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    for number, panel in enumerate(panels.flat):
        if number < count:
            _plane(panel, report, atlas, atlas.slices[number], ink)
        else:
            panel.set_axis_off()
    for panel in panels[-1, :]:
        panel.set_xlabel(f"λ of {report.space.names[atlas.x]}", fontsize=8, labelpad=1)
    if atlas.y is not None:
        for panel in panels[:, 0]:
            panel.set_ylabel(f"λ of {report.space.names[atlas.y]}", fontsize=8, labelpad=0)
    handles = _handles(panels.flat[0], report, atlas, found, ink)
    if inside:
        corner = figure.add_subplot(panels[-1, -1].get_gridspec()[-1, columns - blank :])
        corner.set_axis_off()
        _legend(corner, report, handles, "center", per_line * blank // columns)
    else:
        _legend(figure, report, handles, "outside lower center", per_line)
    return figure


def _plane(panel: Any, report: Report, atlas: cells.Atlas, plane: cells.Slice, ink: Ink) -> None:
    panel.imshow(_image(report, plane), origin="lower", interpolation="none", aspect="auto")
    boxes = np.array(list(cells.rectangles(_inferred(plane))), dtype=float).reshape(-1, 4)
    if len(boxes):
        x, y, width, height = boxes.T
        panel.bar(
            x - 0.5,
            height,
            width,
            y - 0.5,
            align="edge",
            fill=False,
            hatch="////",
            edgecolor=ink.muted,
            alpha=0.35,
            lw=0,
        )
    _borders(panel, plane, ink)
    if _outlined(atlas):
        _outline(panel, plane, ink)
    for area in cells.numbered(plane):
        rgb = combination_rgb(report.decoded(area.code), len(report.part.levels))
        solid = bool(plane.measured[area.y, area.x])
        panel.text(
            area.x,
            area.y,
            str(area.code + 1),
            ha="center",
            va="center",
            fontsize=6.5,
            color="#ffffff" if solid and is_dark(rgb) else "#000000" if solid else ink.text,
        )
    _ticks(panel, report, atlas)
    title = ", ".join(f"{name} {text}" for name, text in plane.fixed)
    panel.set_title(title, fontsize=8.5, pad=3)


def _image(report: Report, plane: cells.Slice) -> NDArray[np.float64]:
    """RGBA of every cell."""
    image = np.zeros((*plane.code.shape, 4))
    for code in np.unique(plane.code):
        if code >= cells.NONE:
            rgb = (_NONE,) * 3
            if code >= 0:
                rgb = combination_rgb(report.decoded(int(code)), len(report.part.levels))
            image[plane.code == code, :3] = rgb
    pale = _PALE[0] + _PALE[1] * plane.sure
    image[..., 3] = np.where(plane.measured, 1.0, pale) * (plane.code >= cells.NONE)
    return image


def _borders(panel: Any, plane: cells.Slice, ink: Ink) -> None:
    """Lines between different cells, as one path."""
    x: list[float] = []
    y: list[float] = []
    for (x0, y0), (x1, y1) in cells.borders(plane.code):
        x += (x0, x1, np.nan)
        y += (y0, y1, np.nan)
    panel.plot(x, y, color=ink.muted, lw=0.5)


def _outline(panel: Any, plane: cells.Slice, ink: Ink) -> None:
    """A frame around every measured cell, as one path."""
    y, x = np.nonzero(plane.measured)
    gap = np.full(len(x), np.nan)
    xs = np.stack([x - 0.5, x + 0.5, x + 0.5, x - 0.5, x - 0.5, gap], axis=1)
    ys = np.stack([y - 0.5, y - 0.5, y + 0.5, y + 0.5, y - 0.5, gap], axis=1)
    panel.plot(xs.reshape(-1), ys.reshape(-1), color=ink.text, lw=1.1, clip_on=False)


def _ticks(panel: Any, report: Report, atlas: cells.Atlas) -> None:
    for which, set_ticks in ((atlas.x, panel.set_xticks), (atlas.y, panel.set_yticks)):
        if which is None:
            set_ticks([])
            continue
        axis = report.space.axes[which]
        places = {0, len(axis) - 1, (len(axis) - 1) // 2}
        if axis.low < 0 < axis.high:
            places = {0, len(axis) - 1, -axis.low}
        set_ticks(sorted(places), [axis.text(axis.low + place) for place in sorted(places)])
    panel.tick_params(length=2, labelsize=7)
    for side in ("top", "right"):
        panel.spines[side].set_visible(True)


def _handles(
    panel: Any, report: Report, atlas: cells.Atlas, found: list[int], ink: Ink
) -> list[Any]:
    """One square per combination, and what the other looks of a cell mean."""
    handles = []
    for code in found:
        levels = report.decoded(code)
        rgb = combination_rgb(levels, len(report.part.levels))
        names = " ".join(report.part.levels[level] for level in levels)
        handles.append(_square(panel, f"{code + 1}  {names}", color=rgb))
    grey = (_NONE,) * 3
    handles.append(_square(panel, "a domain without\ndominant level", color=grey, alpha=0.6))
    if _outlined(atlas):
        handles.append(_square(panel, "outlined: measured", mfc="none", mec=ink.text, mew=1.3))
    if any(_inferred(plane).any() for plane in atlas.slices):
        handles.append(_square(panel, "faint, hatched: inferred", color=ink.muted, alpha=0.3))
    return handles


def _outlined(atlas: cells.Atlas) -> bool:
    """Whether measured cells are outlined: in all slices or in none."""
    share = sum(plane.measured.mean() for plane in atlas.slices) / len(atlas.slices)
    return bool(0 < share < _DENSE)


def _inferred(plane: cells.Slice) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = ~plane.measured & (plane.code >= cells.NONE)
    return found


def _legend(on: Any, report: Report, handles: list[Any], place: str, columns: int) -> None:
    on.legend(
        handles=handles,
        loc=place,
        ncols=max(columns, 1),
        fontsize=7.5,
        title=f"number, levels in {', '.join(report.part.domains)}",
        title_fontsize=8,
        handletextpad=0.1,
        columnspacing=0.9,
    )


def _square(panel: Any, label: str, **style: Any) -> Any:
    return panel.plot([], [], ls="", marker="s", ms=7, label=label, **style)[0]
