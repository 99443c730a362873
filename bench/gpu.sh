#!/usr/bin/env bash
# Everything avops can do on a GPU, in one run: build, test, sanitise, measure. Needs torch with
# CUDA, Triton, cuda-core, nvcc and g++, no network ($WHEELS, default wheels/, may hold what is
# missing). Log and JSON go to $OUT (default: bench/results/gpu-run). Ends inside 8 minutes.
set -uo pipefail
cd "$(dirname "$0")/.."
OUT=${OUT:-bench/results/gpu-run}
PYTHON=${PYTHON:-python3}
END=$(($(date +%s) + 470))
mkdir -p "$OUT"
exec > >(tee "$OUT/log.txt") 2>&1

status=0
# step NAME SECONDS COMMAND...: at most so long, and never past the end.
step() {
    local name=$1 limit=$2 left=$((END - $(date +%s)))
    shift 2
    echo "== $name"
    if [ "$left" -lt 5 ]; then
        echo "== left out: no time"
        status=1
        return
    fi
    timeout "$((limit < left ? limit : left))" "$@" || { echo "== failed with exit status $?"; status=1; }
}

step "machine" 30 nvidia-smi
for package in xxhash rich; do
    "$PYTHON" -c "import $package" 2>/dev/null ||
        step "$package" 60 "$PYTHON" -m pip install -q --no-index --find-links "${WHEELS:-wheels}" "$package"
done
step "build" 180 "$PYTHON" -m pip install -q --no-deps --no-build-isolation -e .
step "doctor" 60 "$PYTHON" -m avops doctor
step "tests marked gpu" 200 "$PYTHON" -m pytest -m gpu -p no:cacheprovider -q --durations=10
if command -v compute-sanitizer >/dev/null; then
    step "memcheck" 60 compute-sanitizer --tool memcheck --error-exitcode 9 "$PYTHON" -m bench.gpu.small
    step "racecheck" 60 compute-sanitizer --tool racecheck --error-exitcode 9 "$PYTHON" -m bench.gpu.small
fi
step "combine" 150 "$PYTHON" -m bench.gpu --part combine --json "$OUT/combine.json"
step "live" 150 "$PYTHON" -m bench.gpu --part live --json "$OUT/live.json"
step "score" 190 "$PYTHON" -m bench.gpu --part score --json "$OUT/score.json"
exit "$status"
