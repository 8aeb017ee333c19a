"""The kernels that nvcc compiles cost no more than bench/static_cost/cuda_table.json says."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "bench" / "static_cost" / "cuda_cost.py"


@pytest.mark.slow
def test_no_kernel_spills() -> None:
    if not (shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")):
        pytest.skip("no nvcc in $PATH or /usr/local/cuda/bin")
    checked = subprocess.run([sys.executable, SCRIPT, "--check"], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "decode_chunks_kernel" in checked.stdout
