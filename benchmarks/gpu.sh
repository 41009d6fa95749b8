#!/usr/bin/env bash
# All that needs a GPU, in parts of less than nine minutes each: tests, compute-sanitizer, and the races.
#
#     bash benchmarks/gpu.sh            every part, one after the other
#     bash benchmarks/gpu.sh PART …     tests, sanitizer-TOOL (memcheck, racecheck, synccheck, initcheck), baseline,
#                                       conv-BATCH-PRECISION (1, 32, 64; fp32, tf32, fp16), vgg
#
# Needs an NVIDIA GPU, CuPy and pytest; cuDNN and PyTorch to race against; compute-sanitizer of the CUDA toolkit. What is
# missing is said and skipped; a part that fails or takes longer is said, and the next one starts. Results are in
# benchmarks/results/, pictures and tables in docs/.
set -uo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
PYTHON=${PYTHON:-python3}
status=0

part() { # NAME COMMAND …
    local name=$1 began=$SECONDS result
    shift
    printf '\n== %s: %s\n' "$name" "$*"
    timeout 530 "$@"
    result=$?
    ((result == 124)) && echo "$name took more than 530 s and was ended; what it had saved is kept"
    ((result == 0)) || status=1
    printf '== %s: exit status %d after %d s\n' "$name" "$result" "$((SECONDS - began))"
}

run() {
    local rest=${1#*-}
    case $1 in
        tests)
            local together=()
            "$PYTHON" -c 'import xdist' 2> /dev/null && together=(-n 4)
            # shellcheck disable=SC2046
            part tests "$PYTHON" -m pytest -q "${together[@]}" $(grep -lE 'check_(op|conv|layer)\(|CuPy' tests/test_*.py)
            ;;
        sanitizer-*)
            if ! command -v compute-sanitizer > /dev/null; then
                echo "$1 skipped: there is no compute-sanitizer (it comes with the CUDA toolkit)"
                return
            fi
            part "$1" compute-sanitizer --tool "$rest" --error-exitcode 1 "$PYTHON" benchmarks/gpu_kernels.py
            ;;
        baseline) part baseline "$PYTHON" benchmarks/conv_gpu.py --baseline --batches 32 ;;
        conv-*-*) part "$1" "$PYTHON" benchmarks/conv_gpu.py --batches "${rest%-*}" --precisions "${rest#*-}" ;;
        vgg) part vgg "$PYTHON" benchmarks/vgg_gpu.py ;;
        *)
            echo "no part \"$1\"; the head of this file lists them" >&2
            exit 2
            ;;
    esac
}

if (($# == 0)); then
    set -- tests sanitizer-{memcheck,racecheck,synccheck,initcheck} baseline conv-{32,64,1}-{fp32,tf32,fp16} vgg
fi
for one in "$@"; do run "$one"; done
exit "$status"
