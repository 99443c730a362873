"""python -m bench [--save] [--mergekit PYTHON] [--lm-eval PYTHON]: the CPU benchmarks in turn.

--save writes their figures to bench/results/, with machine, versions, commit and date.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--save", action="store_true")
    parser.add_argument("--mergekit", metavar="PYTHON", help="a Python that imports mergekit")
    parser.add_argument("--lm-eval", metavar="PYTHON", help="a Python that imports lm_eval")
    args = parser.parse_args()
    kernels = ["--json", str(RESULTS / "kernels.json")] if args.save else []
    merge = ["--save"] if args.save else []
    merge += ["--mergekit", args.mergekit] if args.mergekit else []
    logprob = ["--json", str(RESULTS / "logprob.json")] if args.save else []
    score = ["--save"] if args.save else []
    score += ["--lm-eval", args.lm_eval] if args.lm_eval else []
    rows = {"kernels": kernels, "logprob": logprob, "merge": merge, "score": score}
    for name, options in rows.items():
        subprocess.run([sys.executable, "-m", f"bench.{name}", *options], check=True)


if __name__ == "__main__":
    main()
