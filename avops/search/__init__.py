"""CHOOSE λ: the evaluator, sweeps and their figures."""

from avops.search.evaluator import Evaluator, Setup
from avops.search.figure import require_matplotlib, sweep_figure
from avops.search.sweep import Sweep, from_scores, sweep, to_csv

__all__ = [
    "Evaluator",
    "Setup",
    "Sweep",
    "from_scores",
    "require_matplotlib",
    "sweep",
    "sweep_figure",
    "to_csv",
]
