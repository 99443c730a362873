"""What the paper itself reports, as far as it is known here: Mistral-7B on an A100.

Only what is known of it stands here; its tables of shares could not be read. EXPERT and SAFE are
from a summary of the paper by others, which names no table (rohan-paul.com, "Inference time LLM
alignment in single").
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
EXPERT = {"med": (0.95, "0.5"), "fin": (0.85, "0.3"), "leg": (1.0, "0.3")}
"""Share of expert answers in the vector's own domain, and the λ."""
SAFE = (0.93, "1")
"""Share of safe answers, and λ of the safety vector."""
FASTER_THAN_RETRAINING = 12
"""How many times faster than training again, for all combinations."""
INFERENCE_COST = 0.5
"""Of prompting: the instruction's tokens are saved."""
