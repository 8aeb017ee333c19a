"""The compiled kernels are no worse than in bench/static_cost/table.json."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
SCRIPT = Path(__file__).parents[2] / "bench" / "static_cost" / "static_cost.py"


@pytest.mark.slow
def test_no_kernel_spills_or_lost_its_wide_loads():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    checked = subprocess.run([sys.executable, SCRIPT, "--check"], env=environment, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
    assert "apply_bwd_kernel" in checked.stdout
