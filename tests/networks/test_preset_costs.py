"""Parameters and arithmetic of the published configurations, as bench/static_cost/count_presets.py counts them."""

import contextlib
import dataclasses
import io

import pytest

from vologan_fast.config import PRESETS


@pytest.fixture(scope="module")
def counting(counting_script):
    return counting_script("count_presets")


@pytest.mark.parametrize(
    ("preset", "size", "generator", "discriminator"),
    [
        # Parameters in millions, and GFLOP of a forward for one image.
        ("vologan-512", 512, (39.244, 515), (5.304, 132)),
        ("vologan-64", 512, (38.906, 402), (2.122, 59)),  # published: 2.125 M with the blind norms and biases
        ("cyclegan-256", 256, (11.378, 99), (2.765, 6)),
        # The blurs have no parameters. Transposed convolutions have as many as convolutions.
        ("cut-256", 256, (11.378, 128), (2.765, 13)),
    ],
)
def test_the_counts_are_those_of_the_papers(counting, preset, size, generator, discriminator):
    config = PRESETS[preset]
    row = counting.count(dataclasses.replace(config, data=dataclasses.replace(config.data, size=size)))
    for network, (parameters, flop) in ((row.generator, generator), (row.discriminator, discriminator)):
        assert round(network.parameters / 1e6, 3) == parameters
        assert round(network.flop / 1e9) == flop
    attention = row.generator.with_attention - row.generator.parameters
    assert attention == (132_481 if preset == "vologan-512" else 0)


def test_the_arithmetic_of_a_resnet_by_hand(counting):
    """Each convolution takes 2 · channels in · channels out · kernel² · positions."""
    row = counting.count(PRESETS["cyclegan-256"])
    side = 256 * 256
    convolutions = [
        *(3 * 64 * 49 * side, 64 * 128 * 9 * side // 4, 128 * 256 * 9 * side // 16),
        18 * 256 * 256 * 9 * side // 16,
        *(256 * 128 * 9 * side // 16, 128 * 64 * 9 * side // 4, 64 * 3 * 49 * side),  # transposed: at their input
    ]
    assert row.generator.flop == 2 * sum(convolutions)
    patches = [3 * 64 * 128**2, 64 * 128 * 64**2, 128 * 256 * 32**2, 256 * 512 * 31**2, 512 * 30**2]
    assert row.discriminator.flop == 2 * 16 * sum(patches)


def test_each_preset_has_a_row(counting):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        counting.main()
    rows = {line.split()[0]: line.split() for line in out.getvalue().splitlines()[2:]}
    assert set(rows) == set(PRESETS)
    assert rows["cut-256"][1] == "cut" and all(float(row[-1]) > 0 < float(row[-2]) for row in rows.values())
