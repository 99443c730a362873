from __future__ import annotations

import sys
from pathlib import Path

# `python -m pytest` has the checkout on its path already, plain `pytest` has not.
ROOT = Path(__file__).parents[2]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))
