"""Activations that a step of `vologan-512` keeps at its peak, as bench/static_cost/count_memory.py counts them."""

import pytest


@pytest.fixture(scope="module")
def count(counting_script):
    return counting_script("count_memory")


@pytest.mark.parametrize(
    ("routing", "share"), [("vologan", 0.15), pytest.param("cyclegan", 0.25, marks=pytest.mark.slow)]
)
def test_the_fast_step_keeps_a_fraction_of_eager(count, routing, share):
    eager = count.peak(eager=True, step="plain", routing=routing)
    assert count.peak(routing=routing) <= share * eager
    assert eager > 8 * 2**30  # six generator passes of 1361 MiB, and four passes of the discriminators


def test_recomputing_the_outer_level_keeps_less(count):
    assert count.peak(recompute=1) < 0.9 * count.peak()
