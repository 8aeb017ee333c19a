#!/bin/sh
# Runs all checks that need a GPU, in at most nine minutes: the tests marked gpu, then all benchmarks, the most
# important first. It needs torch with CUDA, Triton, pytest and pytest-benchmark. It builds the native parts if the
# build tools are there. It installs and downloads nothing. Tests whose other packages are missing are skipped.
#
#     bench/on_gpu.sh [FOLDER]      writes GPU-COMMIT.json and GPU-COMMIT.md, by default to bench/results/
#
# The exit code is 1 if a part failed. If no time is left for a benchmark, the table says so, and it is no failure.
# The code that torch.compile made is kept, so the next run on this machine gets further.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
export PYTHONPATH="$PWD/kernels:$PWD${PYTHONPATH:+:$PYTHONPATH}"

if ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "bench/on_gpu.sh: torch finds no CUDA device here; expected one" >&2
    exit 1
fi
deadline=$(($(date +%s) + 520)) # to stop a part may take 10 s more, and so may the table
parts=$(mktemp -d)
trap 'rm -rf "$parts"' EXIT
failed=0

# part NAME SECONDS COMMAND…: runs the command for at most SECONDS, or for the time left. Keeps output, status and time.
part() {
    name=$1 limit=$2 began=$(date +%s) status=124
    shift 2
    if [ $((deadline - began)) -lt "$limit" ]; then limit=$((deadline - began)); fi
    if [ "$limit" -gt 0 ]; then
        echo "== $name, at most $limit s"
        status=0
        timeout -s INT -k 10 "$limit" "$@" >"$parts/$name.txt" 2>&1 || status=$?
        tail -n 3 "$parts/$name.txt"
    fi
    echo "$name $status $(($(date +%s) - began))" >>"$parts/parts"
    return "$status"
}

# bench NAME SECONDS TESTS…: runs the tests in their own process, so that stopping it loses no results of other parts.
bench() {
    name=$1 limit=$2
    shift 2
    part "$name" "$limit" "$python" -m pytest -q -s --show-capture=no -p no:cacheprovider \
        --benchmark-json="$parts/$name.json" "$@" || case $? in
    5 | 124 | 137) ;; # a package is not installed; no time left
    *) failed=1 ;;
    esac
}

if ! "$python" -c 'import vologan_fast.depth' 2>/dev/null; then
    if cmake -S . -B "$parts/build" -DPython_EXECUTABLE="$(command -v "$python")" \
        -Dpybind11_DIR="$("$python" -m pybind11 --cmakedir)" >"$parts/configure.txt" 2>&1; then
        part build 60 cmake --build "$parts/build" --parallel || failed=1
        cmake --install "$parts/build" --prefix . >/dev/null || failed=1
    else
        echo "build 5 0" >>"$parts/parts"
        echo "bench/on_gpu.sh: the native parts cannot be built here, what needs them is skipped:" >&2
        tail -n 5 "$parts/configure.txt" >&2
    fi
fi

tests=$(grep -rl --include='test_*.py' 'mark\.gpu' tests)
# shellcheck disable=SC2086  # a list of words
lacking=$("$python" -m pytest -q -p no:cacheprovider --collect-only -m gpu $tests | sed -n 's/^ERROR \([^ ]*\).*/\1/p') || true
if [ -n "$lacking" ]; then
    echo "bench/on_gpu.sh: skipped, as what they import is not here:" "$lacking" >&2
    tests=$(echo "$tests" | grep -vxF "$lacking")
fi
# shellcheck disable=SC2086
part tests 180 "$python" -m pytest -q -p no:cacheprovider -m gpu $tests || failed=1

bench step-512-4 220 "bench/step/test_step.py::test_step[vologan-512-4]"
bench kernels 90 bench/kernels
bench largest-batch 60 bench/step/test_largest_batch.py
bench step-64-8 150 "bench/step/test_step.py::test_step[vologan-64-8]"
bench step-512-1 150 "bench/step/test_step.py::test_step[vologan-512-1]"
bench step-512-8 150 "bench/step/test_step.py::test_step[vologan-512-8]"
bench decode 30 bench/decode
bench loader 90 bench/loader

"$python" bench/collect.py "$parts" "${1:-bench/results}"
exit $failed
