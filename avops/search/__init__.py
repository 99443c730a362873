"""CHOOSE λ: the live model, the evaluator, sweeps and their figures."""

from avops.search.evaluator import Evaluator, Setup
from avops.search.figure import require_matplotlib, sweep_figure
from avops.search.live import LiveModel, Opened
from avops.search.measure import Measured, Wanted, lacks, measure, new_table
from avops.search.sweep import Sweep, from_scores, sweep, to_csv

__all__ = [
    "Evaluator",
    "LiveModel",
    "Measured",
    "Opened",
    "Setup",
    "Sweep",
    "Wanted",
    "from_scores",
    "lacks",
    "measure",
    "new_table",
    "require_matplotlib",
    "sweep",
    "sweep_figure",
    "to_csv",
]
