"""The differences of depth that discriminators may see as two more channels."""

import dataclasses
import math

import pytest
import torch

from vologan_fast.config import Config, ConfigError, DataConfig, DiscriminatorConfig, GeneratorConfig, check
from vologan_fast.networks import Networks
from vologan_fast.networks.depth_gradient import with_depth_gradient

SMALL = Config(
    data=DataConfig(size=16),
    generator=GeneratorConfig(width=4, max_width=4, levels=2),
    discriminator=DiscriminatorConfig(network="patch_vologan", width=4, max_width=4, levels=1, depth_gradient=4.0),
)


@pytest.mark.parametrize("shape", [(2, 4, 5, 7), (1, 1, 3, 2), (3, 2, 1, 4), (2, 2, 1, 1)], ids=str)
@pytest.mark.parametrize("factor", [0.5, 16.0])
def test_the_channels_are_bounded_differences_to_the_neighbours(shape, factor):
    images = torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = with_depth_gradient(images, factor)
    n, channels, height, width = shape
    assert found.shape == (n, channels + 2, height, width)
    assert torch.equal(found[:, :channels], images)
    depth = images[:, -1]
    for i in range(n):
        for y in range(height):
            for x in range(width):
                right = depth[i, y, x + 1] - depth[i, y, x] if x + 1 < width else 0.0
                below = depth[i, y + 1, x] - depth[i, y, x] if y + 1 < height else 0.0
                for channel, difference in ((channels, right), (channels + 1, below)):
                    assert found[i, channel, y, x].item() == pytest.approx(math.tanh(factor * difference), abs=1e-15)


def test_depth_gets_the_gradient_of_the_formula():
    images = torch.rand((2, 2, 3, 4), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: with_depth_gradient(x, 3.0), images)
    assert torch.autograd.gradgradcheck(lambda x: with_depth_gradient(x, 3.0), images)  # for the gradient penalties


@pytest.mark.parametrize(
    ("channels", "expected"),
    [("rgbd", (6, 6)), ("depth", (3, 3)), (("rgb", "depth"), (3, 3)), (("rgbd", "grey"), (6, 1)), ("rgb", (3, 3))],
)
def test_only_a_discriminator_of_depth_has_more_channels(channels, expected):
    networks = Networks(dataclasses.replace(SMALL, data=DataConfig(size=16, channels=channels)))
    for domain, number in zip("st", expected, strict=True):
        first = next(networks.get_submodule(f"discriminator_{domain}").parameters())
        assert first.shape[1] == number


def test_a_negative_factor_is_refused():
    with pytest.raises(ConfigError, match=r"depth-gradient is -1\.0: expected at least 0"):
        check(dataclasses.replace(SMALL, discriminator=DiscriminatorConfig(depth_gradient=-1.0)))
