"""The picture of bench.search: combinations found against measurements."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

SHOWN = {
    "active": "#0b6e4f",
    "active, 32 at a time": "#5fb49c",
    "refine": "#7b4fa3",
    "grid:best": "#b08900",
    "random": "#8a8a8a",
    "optuna:tpe": "#c8553d",
    "optuna:cmaes": "#2f6fb0",
}
SPAN = 400


def draw(result: dict[str, Any], path: Path) -> None:
    """Share of the reachable combinations found, one panel per world: median and all runs."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    worlds = result["worlds"]
    figure, panels = plt.subplots(
        1, len(worlds), figsize=(4.3 * len(worlds), 3.6), sharey=True, squeeze=False
    )
    for panel, world in zip(panels[0], worlds, strict=True):
        for kind, colour in SHOWN.items():
            runs = [r for r in result["runs"] if r["kind"] == kind and r["world"] == world["seed"]]
            if not runs:
                continue
            curves = np.array([_stretched(run["curve"]) for run in runs])
            x = np.arange(1, SPAN + 1)
            panel.fill_between(x, curves.min(axis=0), curves.max(axis=0), color=colour, alpha=0.15,
                               linewidth=0, step="post")  # fmt: skip
            panel.step(x, np.median(curves, axis=0), where="post", color=colour,
                       label=f"{kind} ({len(runs)})",
                       linewidth=1.8 if kind == "active" else 1.2)  # fmt: skip
        panel.axhline(world["reachable"], color="black", linewidth=0.8, linestyle=":")
        panel.set_title(
            f"world {world['seed']}: {world['reachable']} of {world['combinations']} reachable",
            fontsize=10,
        )
        panel.set_xscale("log")
        ticks = (10, 20, 40, 80, 160, 400)
        panel.set_xticks(ticks, [str(tick) for tick in ticks])
        panel.xaxis.set_minor_locator(mpl.ticker.NullLocator())
        panel.set_xlim(5, SPAN)
        panel.set_xlabel("measured points")
        panel.grid(alpha=0.25, linewidth=0.5)
        for side in ("top", "right"):
            panel.spines[side].set_visible(False)
    panels[0][0].set_ylabel("combinations hit")
    figure.tight_layout(rect=(0, 0.09, 1, 1))
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(
        handles, labels, fontsize=8.5, loc="lower center", ncols=len(labels), frameon=False,
        title="strategy (runs on each world): median, and all runs", title_fontsize=8.5,
    )  # fmt: skip
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _stretched(curve: list[int]) -> list[int]:
    """A run that ended keeps what it found."""
    return (curve + [curve[-1]] * SPAN)[:SPAN]
