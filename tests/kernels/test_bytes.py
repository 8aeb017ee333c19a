"""What the norms of `vologan-512` move and keep, as bench/bytes counts it."""

import importlib.util
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
SCRIPT = Path(__file__).parents[2] / "bench" / "bytes" / "count_bytes.py"


@pytest.fixture(scope="module")
def count():
    spec = importlib.util.spec_from_file_location("count_bytes", SCRIPT)
    module = sys.modules["count_bytes"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_layer_moves_at_most_eight_tensors_without_layout_copies(count):
    layers = set(count.layers())
    assert {layer.pad for layer in layers} == {0, 1, 3}
    for layer in layers:
        passes, layout_copies = count.ours(layer)
        assert layout_copies == 0
        # Of forward and backward, five passes are over the padded tensor where there is a padding.
        assert layer.required <= passes <= 3 + 5 * layer.padded


def test_the_count_of_eager_finds_what_it_is_known_to_do(count):
    """Copies to contiguous and back, and batch norm's two readings: 19 passes and more without a padding."""
    passes, layout_copies = count.eager(count.Layer((1, 64, 128, 128), 0.3, 0))
    assert passes >= 19 and layout_copies >= 3


def test_a_generator_pass_keeps_two_fifths_of_eager(count):
    ours, eager = count.saved_bytes(plain=False), count.saved_bytes(plain=True)
    assert ours <= 0.4 * eager
