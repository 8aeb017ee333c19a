"""bench/step/cpu_table.py: its sides, that they compute the same, and what its tables show. Nothing is timed."""

import sys
import time
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[2] / "bench" / "step"))
import cpu_table
from cpu_table import CPU_SIDES, EAGER, Case, Measured, Memory, Runner, RunnerProcess, measure
from sides import TOLERANCE, first_state, images, kept_bytes, losses_of, make_step

from vologan_fast.config import check

CASE = Case("demo", 4, 32, 2)
UNCOMPILED = [side for side in CPU_SIDES if not side.startswith("compile")]
FP32, BF16 = "ours, float32, contiguous", "ours, bfloat16, channels_last"


def test_each_precision_and_layout_is_a_side():
    each = {f"{dtype}, {layout}" for dtype in ("float32", "bfloat16") for layout in ("contiguous", "channels_last")}
    assert set(CPU_SIDES) == {EAGER} | {f"{kind}, {one}" for kind in ("ours", "compile") for one in each}
    for name, side in CPU_SIDES.items():
        assert name == EAGER or name.endswith(str(side.numerics))


def test_all_sides_compute_the_same():
    found = measure(CASE, torch.get_num_threads(), UNCOMPILED, turns=1, limit=60, start=Runner)
    assert found.left_out == {} and list(found.milliseconds) == UNCOMPILED
    assert {found.automatic, found.forced} <= set(UNCOMPILED)
    for side, differ in found.losses_differ.items():  # left_out judges bfloat16 by eager's own error
        if CPU_SIDES[side].numerics.dtype == torch.float32:
            assert differ <= TOLERANCE[torch.float32][0], side


def test_the_published_networks_are_measured_too():
    """They have attention, spectral norm and reflection padding. All cases of the table are configurations."""
    for case in cpu_table.CASES.values():
        check(case.config)
    found = measure(
        Case("vologan-512", 4, 64, 1), torch.get_num_threads(), [EAGER, FP32], turns=1, limit=60, start=Runner
    )
    assert found.left_out == {} and found.losses_differ[FP32] <= TOLERANCE[torch.float32][0]


@pytest.mark.slow
def test_a_compiled_side_computes_the_same():
    found = measure(CASE, 1, [EAGER, "compile, float32, contiguous"], turns=1, limit=600, start=RunnerProcess)
    assert found.left_out == {} and found.best_compiled() == "compile, float32, contiguous"


def test_ours_keeps_a_fraction_of_the_activations():
    state, pair = first_state(CASE.config), images(CASE.config, CASE.batch)
    kept = {side: kept_bytes(make_step(CPU_SIDES[side], CASE.config, state), pair, 0) for side in (EAGER, FP32, BF16)}
    assert kept[BF16] < 0.65 * kept[FP32] and kept[FP32] < 0.2 * kept[EAGER]


def test_sides_in_processes_take_turns():
    found = measure(CASE, 1, [EAGER, FP32], turns=1, limit=60)
    assert found.left_out == {} and list(found.milliseconds) == list(found.memory) == [EAGER, FP32]
    assert all(of.kept < of.resident for of in found.memory.values())


def test_a_side_that_computes_something_else_has_no_time(monkeypatch):
    """So has a side that fails."""

    def disturbed(step, pair, number):
        if type(step).__name__ == "FastStep":
            if step.precision == torch.bfloat16:
                raise RuntimeError("no such instruction")
            return [1.001 * loss for loss in losses_of(step, pair, number)]
        return losses_of(step, pair, number)

    monkeypatch.setattr(cpu_table, "losses_of", disturbed)
    found = measure(CASE, torch.get_num_threads(), [EAGER, FP32, BF16], turns=1, limit=60, start=Runner)
    assert list(found.milliseconds) == [EAGER]
    assert found.left_out == {
        FP32: "WRONG: its losses differ by 1.0e-03",
        BF16: "RuntimeError: no such instruction",
    }
    assert "no such instruction" in cpu_table.times([found])


def test_a_first_step_has_a_limit():
    with pytest.raises(TimeoutError, match="longer than 0 s"), cpu_table._at_most(0.05):
        time.sleep(5)
    with cpu_table._at_most(0.05):
        pass
    time.sleep(0.1)  # no signal comes any more


def test_the_tables():
    """The best of torch.compile may have any precision. Beside ours in float32 as a choice, it has float32, too."""
    times = {EAGER: 200.0, FP32: 150.0, BF16: 100.0}
    compiled = {"compile, float32, contiguous": 180.0, "compile, bfloat16, contiguous": 120.0}
    found = Measured("demo", 2, automatic=BF16, forced=FP32, milliseconds=times | compiled)
    assert cpu_table.ratios([found]).splitlines()[2:] == [
        "| demo | 2 | bfloat16, channels_last (auto) | 100.0 | 2.00 × | 1.20 × | bfloat16, contiguous |",
        "| demo | 2 | float32, contiguous | 150.0 | 1.33 × | 1.20 × | float32, contiguous |",
    ]
    found.memory = {EAGER: Memory(2**30, 2**31), BF16: Memory(2**27, 2**30)}
    assert cpu_table.memory([found]).splitlines()[3] == f"| demo | 2 | {BF16} | 128.0 | 0.12 | 1024 |"
