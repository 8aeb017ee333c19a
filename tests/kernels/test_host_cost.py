"""What a call of an operation costs the host, as bench/host_cost.py counts it with the launch stubbed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
SCRIPT = Path(__file__).parents[2] / "bench" / "host_cost.py"


@pytest.fixture(scope="module")
def counts():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, SCRIPT, "--counts"]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(ran.stdout)


@pytest.mark.parametrize(
    ("row", "direction", "python", "operations", "launches"),
    [
        ("operation of a norm's forward, one launch", "forward", 21, 4, 1),
        ("operation of a norm's backward, one launch", "forward", 24, 6, 1),
        ("operation of a norm's forward, two launches", "forward", 25, 5, 2),
        ("operation of a norm's backward, two launches", "forward", 28, 7, 2),
        ("norm, one launch", "forward", 61, 4, 1),
        ("norm, one launch", "backward", 68, 6, 1),
        ("norm, two launches", "forward", 65, 5, 2),
        ("norm, two launches", "backward", 72, 7, 2),
        ("norm, two launches, residual", "forward", 70, 6, 2),
        ("norm, two launches, residual", "backward", 73, 8, 2),
        ("norm, one launch, no gradient", "forward", 42, 4, 1),
        ("pixel_losses, 4 pairs", "forward", 120, 9, 1),
        ("pixel_losses, 4 pairs", "backward", 67, 9, 1),
        ("adversarial_losses, 4 outputs", "forward", 61, 7, 1),
        ("adversarial_losses, 4 outputs", "backward", 61, 13, 1),
        ("windowed_ssim", "forward", 51, 155, 0),
        ("spectral_norm_step, 10 layers", "forward", 858, 56, 3),
        ("spectral_norm_step, 10 layers", "backward", 370, 54, 2),
        ("NAdam.step, 100 parameters", "forward", 1467, 1, 2),
    ],
)
def test_a_call_enters_few_functions(counts, row, direction, python, operations, launches):
    """The limits are counts with Python 3.11, torch 2.13 and Triton 3.7.1. Others may enter a few functions more."""
    found = counts[row][direction]
    assert found["launches"] == launches
    assert found["operations"] <= operations
    assert found["python"] <= 1.1 * python
