"""bench/norm_cpu.py: its counts of bytes, and that wrong values are not timed. Nothing is timed here."""

import sys
from pathlib import Path

import pytest
import torch
from vologan_kernels import native_library

sys.path.append(str(Path(__file__).parents[2] / "bench"))
import norm_cpu

pytestmark = pytest.mark.skipif(native_library.refusal(torch.zeros(1)) is not None, reason="needs the native library")


@pytest.mark.parametrize("layout", norm_cpu.LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_counts_issued_and_required_bytes(dtype, layout):
    row = norm_cpu.measure((1, 4, 6, 5), dtype, layout, turns=3)
    size = 4 * 6 * 5 * dtype.itemsize
    for side, issued, required in (("forward", 3, 2), ("backward", 5, 3)):
        rate = row[side]["issued"] * row["copy_gb_s"] * 1e9
        assert rate * row[side]["ms"] / 1e3 == pytest.approx(issued * size)
        assert row[side]["required"] / row[side]["issued"] == pytest.approx(required / issued)


def test_a_norm_that_computes_something_else_is_not_timed(monkeypatch):
    right = norm_cpu.instance_norm_act

    def wrong(x, impl, **options):
        return right(x, impl=impl, **options) * (1.1 if impl == "native" else 1)

    monkeypatch.setattr(norm_cpu, "instance_norm_act", wrong)
    with pytest.raises(AssertionError, match="not close"):
        norm_cpu.measure((1, 4, 6, 5), torch.float32, "contiguous", turns=3)
