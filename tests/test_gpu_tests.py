"""The tests for GPUs can be collected on a bare machine: they say what they need, or do without it."""

import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent
ABSENT = ("tyro", "nvidia.dali", "torchmetrics", "OpenEXR", "tensorboard")
"""Packages that a machine with torch, Triton and pytest may lack."""
COLLECT = f"""
import sys
sys.modules.update(dict.fromkeys({ABSENT}))
import pytest
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "--collect-only", "-m", "gpu", *sys.argv[1:]]))
"""


def test_no_test_for_gpus_needs_more_than_it_says():
    marked = [path for path in sorted(TESTS.rglob("test_*.py")) if "mark.gpu" in path.read_text()]
    command = [sys.executable, "-c", COLLECT, *marked]
    found = subprocess.run(command, capture_output=True, text=True, cwd=TESTS.parent, check=False)
    assert found.returncode == 0 and "ERROR" not in found.stdout, found.stdout
    assert "test_a_captured_step_is_the_step" in found.stdout and "test_on_a_gpu" in found.stdout
