#!/usr/bin/env bash
# All that needs a GPU, in parts of less than nine minutes each: tests, compute-sanitizer, and the races.
#
#     bash benchmarks/gpu.sh            every part, one after the other
#     bash benchmarks/gpu.sh PART …     tests, sanitizer, baseline, conv-1, conv-32, conv-64, vgg
#
# Needs an NVIDIA GPU, CuPy and pytest; cuDNN and PyTorch to race against; compute-sanitizer of the CUDA toolkit. What is
# missing is said and skipped; a part that fails or takes longer is said, and the next one starts. Results are in
# benchmarks/results/, pictures and tables in docs/.
set -uo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
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
    case $1 in
        tests) part tests python3 -m pytest tests -q -k gpu -m 'not slow' ;;
        sanitizer)
            if ! command -v compute-sanitizer > /dev/null; then
                echo "sanitizer skipped: there is no compute-sanitizer (it comes with the CUDA toolkit)"
                return
            fi
            local tool
            for tool in memcheck racecheck synccheck initcheck; do
                part "sanitizer, $tool" compute-sanitizer --tool "$tool" --error-exitcode 1 \
                    python3 -m pytest tests -q -x -k 'gpu and not bench' -m 'not slow'
            done
            ;;
        baseline) part baseline python3 benchmarks/conv_gpu.py --baseline --batches 32 ;;
        conv-*) part "$1" python3 benchmarks/conv_gpu.py --batches "${1#conv-}" ;;
        vgg) part vgg python3 benchmarks/vgg_gpu.py ;;
        *)
            echo "no part \"$1\"; there are tests, sanitizer, baseline, conv-1, conv-32, conv-64, vgg" >&2
            exit 2
            ;;
    esac
}

(($#)) || set -- tests sanitizer baseline conv-1 conv-32 conv-64 vgg
for one in "$@"; do run "$one"; done
exit "$status"
