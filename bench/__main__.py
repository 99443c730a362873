"""python -m bench [--save]: the CPU benchmarks, one after the other.

--save writes their figures to bench/results/, with machine, versions, commit and date.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    save = sys.argv[1:] == ["--save"]
    if sys.argv[1:] and not save:
        raise SystemExit(__doc__)
    for name in ("kernels", "merge"):
        options = ["--json", str(RESULTS / f"{name}.json")] if save else []
        subprocess.run([sys.executable, "-m", f"bench.{name}", *options], check=True)


if __name__ == "__main__":
    main()
