#!/usr/bin/env bash
# Everything avops can do on a GPU, in one run: build, test, measure. Needs torch with CUDA and g++,
# no network ($WHEELS, default wheels/, may hold xxhash). Log and JSON go to $OUT (default:
# bench/results/gpu-run). Ends inside 8 minutes.
set -uo pipefail
cd "$(dirname "$0")/.."
OUT=${OUT:-bench/results/gpu-run}
PYTHON=${PYTHON:-python3}
mkdir -p "$OUT"
exec > >(tee "$OUT/log.txt") 2>&1

status=0
step() {
    echo "== $1"
    shift
    timeout "$@" || { echo "== failed with exit status $?"; status=1; }
}

step "machine" 30 nvidia-smi
# No network there: what the machine lacks comes along as wheels.
if ! "$PYTHON" -c "import xxhash" 2>/dev/null; then
    step "xxhash" 60 "$PYTHON" -m pip install -q --no-index --find-links "${WHEELS:-wheels}" xxhash
fi
step "build" 120 "$PYTHON" -m pip install -q --no-deps --no-build-isolation -e .
step "doctor" 30 "$PYTHON" -m avops doctor
step "tests marked gpu" 180 "$PYTHON" -m pytest -m gpu -p no:cacheprovider
step "benchmarks" 150 "$PYTHON" -m bench.gpu --device cuda --json "$OUT/gpu.json"
exit "$status"
