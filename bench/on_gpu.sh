#!/bin/sh
# Everything about the kernels that only a GPU can tell, in one command and a few minutes: tests marked gpu, then the
# benchmarks. Needs torch with CUDA, Triton, pytest and pytest-benchmark; installs and downloads nothing.
#
#     bench/on_gpu.sh [FOLDER]      results, by default under bench/results/
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
export PYTHONPATH="kernels:.${PYTHONPATH:+:$PYTHONPATH}"

name=$("$python" -c 'import torch; print(torch.cuda.get_device_name().replace(" ", "-") if torch.cuda.is_available() else "")')
if [ -z "$name" ]; then
    echo "bench/on_gpu.sh: torch finds no CUDA device here; expected one" >&2
    exit 1
fi
folder=${1:-bench/results}
mkdir -p "$folder"
commit=$(git rev-parse --short HEAD 2>/dev/null || echo unknown)
"$python" - >"$folder/$name.txt" <<ENVIRONMENT
import torch, triton
print("$name, commit $commit, torch", torch.__version__, "CUDA", torch.version.cuda, "Triton", triton.__version__)
ENVIRONMENT
cat "$folder/$name.txt"

failed=0
"$python" -m pytest -q -p no:cacheprovider -m gpu tests/kernels tests/test_step.py tests/test_pending.py 2>&1 | tee "$folder/$name-tests.txt" | tail -30
grep -q " failed\| error" "$folder/$name-tests.txt" && failed=1
"$python" -m pytest -q -s -p no:cacheprovider bench/kernels --benchmark-json="$folder/$name.json" 2>&1 |
    tee "$folder/$name-bench.txt" | grep "floor\|passed\|failed" | tee -a "$folder/$name.txt"
grep -q " failed\| error" "$folder/$name-bench.txt" && failed=1
exit $failed
