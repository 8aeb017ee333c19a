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
        ("norm, one launch", "forward", 161, 4, 1),
        ("norm, one launch", "backward", 129, 19, 1),
        ("norm, three launches", "forward", 238, 5, 3),
        ("norm, three launches", "backward", 208, 20, 3),
        ("norm, one launch, no gradient", "forward", 108, 4, 1),
        ("pixel_losses, 4 pairs", "forward", 271, 23, 1),
        ("pixel_losses, 4 pairs", "backward", 148, 35, 1),
        ("adversarial_losses, 4 outputs", "forward", 225, 14, 1),
        ("adversarial_losses, 4 outputs", "backward", 143, 20, 1),
    ],
)
def test_a_call_enters_few_functions(counts, row, direction, python, operations, launches):
    """The counts were made with Python 3.11, torch 2.13 and Triton 3.7.1. Others may enter a few functions more."""
    found = counts[row][direction]
    assert found["launches"] == launches
    assert found["operations"] <= operations
    assert found["python"] <= 1.2 * python
