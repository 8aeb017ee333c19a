#!/bin/sh
# Measures everything that needs a GPU, in at most eight minutes, also on a bare machine with empty caches.
#
#     bench/on_gpu.sh                    writes bench/results/GPU-COMMIT.json and .md, and prints the table
#     bench/on_gpu.sh --only norm        some parts; --help names them, and all other options
#     bench/on_gpu.sh --rehearse         the same on a CPU, with small tensors: the times mean nothing
#
# It needs torch with CUDA, Triton, NumPy, pytest and pytest-benchmark. It builds the native parts if cmake, a compiler
# and pybind11 are there. It installs and downloads nothing, and overwrites no result. $PYTHON names the interpreter, and
# $COMMIT the measured commit where there is no git. on_gpu.py has the plan.
set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
export PYTHONPATH="$root/kernels:$root${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python3}" "$root/bench/on_gpu.py" "$@"
