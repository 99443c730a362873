"""What the paper itself reports, as far as it is known here: Mistral-7B on an A100.

Only figures that this project's own description takes from the paper stand here; what is not here
is shown as a dash rather than guessed.
"""

from __future__ import annotations

GRID = 21**3
"""Points of the paper's grid: λ from -1 to 1 by 0.1 for three alignment vectors."""
SECONDS_A_POINT = 60
GPU_HOURS = 155
REACHED = 22
COMBINATIONS = 27
LAMS = {"exp": "above 0", "gen": "around -0.5", "avd": "near -1"}
"""Where λ puts a domain's own vector for each level."""
FASTER_THAN_RETRAINING = 12
"""How many times faster than training again, for all combinations."""
INFERENCE_COST = 0.5
"""Of prompting: the instruction's tokens are saved."""
