#!/usr/bin/env bash
# Everything avops can do on a GPU, in one run: build, try, measure, test, sanitise.
#
#     OUT=results bash bench/gpu.sh [--rehearse] [STEP...]
#
# Steps, in this order unless some are named: machine build doctor small combine score live kernels
# knobs scorer memcheck racecheck. Each prints a line "== NAME" with its seconds, and the next ones go on
# whatever became of it. Log and JSON go to $OUT (default: bench/results/gpu-run), JSON after every
# single result. All ends inside $LIMIT seconds (default: 470); what runs out of time is interrupted
# as by Ctrl-C, so that pytest still says what failed.
# Needs torch with CUDA, Triton, cuda-core, nvcc and g++, no network; a core dependency that is
# missing is installed from $WHEELS (default: wheels/). CARRIED=1: avops/_native*.so and
# avops/_combine.fatbin* were built elsewhere from these sources and brought along: where they load,
# nothing is built.
# --rehearse: on a machine without a GPU: the same Python with tiny shapes on the CPU, CUDA kernels by
# the host's compiler, Triton interpreted; tests are collected only, and no build is made in place.
set -uo pipefail
cd "$(dirname "$0")/.."
REHEARSE=
if [ "${1:-}" = --rehearse ]; then
    REHEARSE=--rehearse
    export TRITON_INTERPRET=1
    shift
fi
STEPS=${*:-machine build doctor small combine score live kernels knobs scorer memcheck racecheck}
OUT=${OUT:-bench/results/gpu-run}
PYTHON=${PYTHON:-python3}
END=$(($(date +%s) + ${LIMIT:-470}))
export PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 PIP_NO_INDEX=1 PIP_DISABLE_PIP_VERSION_CHECK=1
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
PATH=$PATH:/usr/local/cuda/bin
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
[ -n "$REHEARSE" ] && export AVOPS_EMULATED=$OUT/emulated
exec > >(tee -a "$OUT/log.txt") 2>&1

status=0
failed() {
    echo "== $1: $2"
    status=1
}
# run NAME SECONDS COMMAND...: at most so long, and never past the end.
run() {
    local name=$1 limit=$2 start left
    start=$(date +%s)
    left=$((END - start))
    shift 2
    echo "== $name: at most $((limit < left ? limit : left)) s"
    if [ "$left" -lt 5 ]; then
        failed "$name" "left out, no time"
        return
    fi
    # By INT, Python unwinds and pytest reports.
    timeout --signal=INT --kill-after=10 "$((limit < left ? limit : left))" "$@"
    local code=$?
    [ "$code" -eq 0 ] || failed "$name" "failed with exit status $code (124: out of time)"
    echo "== $name: $(($(date +%s) - start)) s"
}
has() { "$PYTHON" -c "import $1" 2>/dev/null; }
# bench PART SECONDS OPTION...
bench() {
    local part=$1 limit=$2
    shift 2
    run "$part" "$limit" "$PYTHON" -m bench.gpu $REHEARSE --part "$part" --json "$OUT/$part.json" "$@"
}
# Where 10 GB are written soonest: memory, if there is plenty.
roomy() {
    local free
    free=$(df --output=avail -BG /dev/shm 2>/dev/null | tail -n 1 | tr -dc 0-9)
    if [ "${free:-0}" -ge 24 ]; then echo /dev/shm; else echo "${TMPDIR:-/tmp}"; fi
}
# tests NAME SECONDS JOBS FOLDER...: those marked gpu. The project's options are left out: they want
# plugins that may be missing here, and would make an error of any warning.
tests() {
    local name=$1 limit=$2 jobs=$3
    shift 3
    local options=(-m gpu -p no:cacheprovider -q -rfE --tb=short --durations=10 -W default)
    options+=(-o addopts=--import-mode=importlib)
    [ -n "$REHEARSE" ] && options+=(--collect-only -qq)
    [ "$jobs" -gt 1 ] && [ -z "$REHEARSE" ] && has xdist && options+=(-n "$jobs")
    # On a device nothing is interpreted; a rehearsal collects what would run there.
    run "$name" "$limit" env -u TRITON_INTERPRET "$PYTHON" -m pytest "${options[@]}" "$@"
}
# sanitized TOOL: every access of small, awkward tables is watched.
sanitized() {
    if [ -n "$REHEARSE" ] || ! command -v compute-sanitizer >/dev/null; then
        echo "== $1: left out, no compute-sanitizer"
        return
    fi
    # Without torch's pool of memory, which would hide what is out of bounds.
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 run "$1" 90 compute-sanitizer --tool "$1" --error-exitcode 9 \
        --target-processes application-only "$PYTHON" -m bench.gpu.small
}
# Whether what was built loads, and the fatbin is of this source.
current() {
    "$PYTHON" -c "from avops.kernels import extension; from avops.kernels.many import cuda_code
raise SystemExit(extension.NATIVE is None or cuda_code._stale() is not None)"
}
build() {
    for package in numpy rich xxhash; do
        has "$package" || run "$package" 60 \
            "$PYTHON" -m pip install -q --find-links "${WHEELS:-wheels}" "$package"
    done
    if [ -n "${CARRIED:-}" ] && current; then
        echo "== build: left out, CARRIED=1 and what was carried loads"
        return
    fi
    local where=(-e .)
    [ -n "$REHEARSE" ] && where=(--target "$OUT/site" .)
    run build 150 "$PYTHON" -m pip install -q --no-deps --no-build-isolation "${where[@]}"
}

for step in $STEPS; do
    case $step in
        machine) if [ -n "$REHEARSE" ]; then uname -srm; else run machine 30 nvidia-smi; fi ;;
        build) build ;;
        doctor) run doctor 60 "$PYTHON" -m avops doctor ;;
        small) run small 120 "$PYTHON" -m bench.gpu.small $REHEARSE ;;
        combine) bench combine 150 ;;
        score) bench score 200 ;;
        live) bench live 110 --directory "$(roomy)" ;;
        kernels) tests kernels 170 4 tests/kernels ;;
        # One process: they look at the memory of the whole device.
        knobs) tests knobs 150 1 tests/knobs ;;
        scorer) tests scorer 150 4 tests/score tests/search ;;
        memcheck | racecheck) sanitized "$step" ;;
        *) failed "$step" "no such step; see the top of $0" ;;
    esac
done
# The log is whole before the exit.
exec >&- 2>&-
wait
exit "$status"
