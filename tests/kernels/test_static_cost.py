"""The compiled kernels are no worse than in bench/static_cost/table.json."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
SCRIPT = Path(__file__).parents[2] / "bench" / "static_cost" / "static_cost.py"


@pytest.mark.slow
def test_no_kernel_spills_or_lost_wide_loads_or_bytes_in_flight():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    checked = subprocess.run([sys.executable, SCRIPT, "--check"], env=environment, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
    assert "apply_bwd_kernel" in checked.stdout


@pytest.fixture(scope="module")
def static_cost(counting_script):
    return counting_script("static_cost")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"in_flight": 9000}, "9000 bytes in flight on a multiprocessor, 10000 in table.json (16.0 a thread, "),
        ({"share": 0.4}, "40.0% of the floor by the model, 50.0% in table.json"),
        ({"share": None}, None),
        ({"in_flight": 9900, "share": 0.495}, None),  # rounding
        ({"in_flight": 20000, "share": 0.9, "registers": 30}, None),
        ({"registers": 60}, "60 registers, 40 in table.json"),
        ({"registers": 130}, "130 registers, expected at most 128"),
        ({"stack": 8}, "8 bytes of stack, expected none"),
        ({"shared": 2048}, "2048 bytes of shared memory, 1024 in table.json"),
        ({"vector_bytes": 8}, "loads of 8 bytes, 16 in table.json"),
        ({"variant": "another"}, "not in table.json; write it anew"),
    ],
)
def test_what_is_a_complaint(static_cost, monkeypatch, change, complaint):
    monkeypatch.setattr(static_cost, "PINNED_TRITON", static_cost.triton.__version__)
    before = static_cost.Row("kernel", "variant", 90, 40, 0, 1024, 16, 1.0, 16.0, 8, 132, 10000, 0.5)
    if change == {"share": None}:
        before = dataclasses.replace(before, share=None)
    after = dataclasses.replace(before, **change)
    found = static_cost.complaints([after], [before])
    if complaint is None:
        assert found == []
    else:
        assert any(complaint in sentence and "kernel" in sentence for sentence in found)


def test_the_table_has_a_row_for_each_generation(static_cost):
    rows = [static_cost.Row(**row) for row in static_cost.json.loads(static_cost.TABLE.read_text())]
    assert {row.arch for row in rows} == set(static_cost.ARCHITECTURES)
    for row in rows:
        if row.loads:
            assert row.bytes > 0 < row.in_flight
        assert row.resident >= 1 and row.programs >= 1
        assert row.share is None or 0 <= row.share < 3
