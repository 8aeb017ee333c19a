"""Bytes that the norms of `vologan-512` move and keep, as bench/static_cost/count_bytes.py counts them."""

import pytest
from vologan_kernels import launch


@pytest.fixture(scope="module")
def count(counting_script):
    return counting_script("count_bytes")


def test_every_layer_moves_at_most_eight_tensors_without_layout_copies(count):
    layers = set(count.layers())
    assert {layer.pad for layer in layers} == {0, 1, 3}
    for layer in layers:
        passes, merging, layout_copies = count.ours(layer)
        assert layout_copies == 0
        # A padded tensor is larger than the normalised one. Four of the eight passes are over a padded one: the
        # forward's second reading and writing, and both readings of the gradient.
        assert layer.required <= passes + 1e-6
        assert passes <= 4 + 4 * layer.padded + 1e-6
        # At most 264 programs share the planes. Each writes two float32 numbers a channel and, in the second launch,
        # reads those of all parts of its planes, from the L2 cache.
        blocks = layer.shape[1] // launch.STREAM_CHANNELS
        programs = launch.STREAM_PROGRAMS * launch.MULTIPROCESSORS
        a_program = 4 * 2 * launch.STREAM_CHANNELS * (1 + programs // blocks + 1)
        assert merging * layer.bytes <= 2 * programs * a_program


def test_the_count_of_eager_finds_what_it_is_known_to_do(count):
    """Eager PyTorch copies to contiguous and back, and batch norm reads its input twice."""
    assert count.eager(count.Layer((1, 64, 128, 128), 0.3, 0)) == (19, 3)


def test_a_generator_pass_keeps_two_fifths_of_eager(count):
    ours, eager = count.saved_bytes(plain=False), count.saved_bytes(plain=True)
    assert ours <= 0.4 * eager
