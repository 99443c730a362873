"""λ-curves: every level's share against the λ of one alignment vector, all others at 0.

A row per alignment vector, a column per domain: panels off the diagonal show what a vector does
where it was not meant to. The layout follows figure 2 of Shahriar et al., arXiv 2410.19206.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from avops.search.report.canvas import Ink, new_figure
from avops.search.report.palette import level_colour, level_marker

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from avops.search.report.data import Report

_LINE = 81  # points of the model's line
_DODGE = 0.006  # of the axis' length: intervals of different levels stand side by side

Line = tuple["NDArray[np.float64]", ...]


def draw(report: Report, ink: Ink) -> Any:
    """Measured dots with intervals on the model's line and band; dots joined up without a model."""
    axes, domains = report.space.axes, report.part.domains
    figure = new_figure(0.8 + 2.75 * len(domains), 0.8 + 2.05 * len(axes))
    panels = figure.subplots(len(axes), len(domains), sharey=True, sharex="row", squeeze=False)
    modelled = False
    for k, axis in enumerate(axes):
        line = _line(report, k)
        modelled = modelled or line is not None
        for d, domain in enumerate(domains):
            panel = panels[k, d]
            _panel(panel, report, k, d, line)
            own = domain == axis.name
            panel.set_title(
                f"{domain}, its own domain" if own else domain,
                loc="left",
                fontweight="bold" if own else "normal",
            )
            panel.axhline(1 / len(report.part.levels), color=ink.muted, lw=0.7, ls=":")
            panel.axvline(0, color=ink.muted, lw=0.7, ls=":")
            panel.set_ylim(-0.03, 1.03)
            panel.set_yticks([0, 0.5, 1], ["0", ".5", "1"])
            panel.grid(alpha=0.6)
            panel.set_xlabel(f"λ of {axis.name}", labelpad=1)
        panels[k, 0].set_ylabel("preference accuracy")
    _legend(figure, panels[0, 0], report, modelled, ink)
    return figure


def _line(report: Report, axis: int) -> tuple[NDArray[np.float64], Line] | None:
    """λ along the axis and the model's shares there; None without a model."""
    model = report.facts.model
    if model is None or not model.fit.trusted:
        return None
    lams = report.space.lams
    along = np.linspace(lams[:, axis].min(), lams[:, axis].max(), _LINE)
    rows = np.repeat(report.space.lams_of([report.origin]), _LINE, axis=0)
    rows[:, axis] = along
    return along, model.shares(rows)


def _panel(
    panel: Any,
    report: Report,
    axis: int,
    domain: int,
    line: tuple[NDArray[np.float64], Line] | None,
) -> None:
    points = report.on_axis(axis)
    levels = report.part.levels
    lams = report.space.lams_of(points)[:, axis] if points else np.empty(0)
    shares = [report.shares_at(point) for point in points]
    apart = _DODGE * float(np.ptp(report.space.lams[:, axis]))
    for place in range(len(levels)):
        colour = level_colour(place)
        if line is not None:
            along, (mean, low, high) = line
            panel.fill_between(
                along,
                low[:, domain, place],
                high[:, domain, place],
                color=colour,
                alpha=0.16,
                lw=0,
            )
            panel.plot(along, mean[:, domain, place], color=colour, lw=1.3, ls="--")
        found = [row[domain * len(levels) + place] for row in shares]
        values = np.array([share.share for share in found])
        spread = np.array([[s.share - s.low, s.high - s.share] for s in found]).reshape(-1, 2).T
        panel.errorbar(
            lams + apart * (place - (len(levels) - 1) / 2),
            values,
            yerr=spread if found else None,
            color=colour,
            ls="-" if line is None else "",
            lw=1.3,
            elinewidth=0.8,
            marker=level_marker(place),
            ms=4,
            alpha=0.95,
        )


def _legend(figure: Any, panel: Any, report: Report, modelled: bool, ink: Ink) -> None:
    handles = [
        panel.plot(
            [], [], color=level_colour(place), marker=level_marker(place), ms=4, lw=0, label=level
        )[0]
        for place, level in enumerate(report.part.levels)
    ]
    dot = panel.plot([], [], color=ink.text, marker="o", ms=4, lw=0)[0]
    dot.set_label("measured, 95 % interval")
    handles.append(dot)
    if modelled:
        handles.append(panel.plot([], [], color=ink.text, ls="--", lw=1.3)[0])
        handles[-1].set_label("model, inferred")
        handles.append(panel.fill_between([], [], [], color=ink.text, alpha=0.16, lw=0))
        handles[-1].set_label("its 95 % band")
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 6))
