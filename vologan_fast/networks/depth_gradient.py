"""Differences of depth, as more channels for a discriminator.

A sensor's noise, its smoothing and its edge tails are differences of neighbouring depths. They are small beside the
depth itself, so a discriminator finds them late, and the generator learns them late. With these channels, the
discriminator has them from the first step. docs/log.md has measurements.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

CHANNELS = 2
"""Channels that are added: the differences to the right neighbour, and to the one below."""


def with_depth_gradient(images: Tensor, factor: float) -> Tensor:
    """Return images (N, C, H, W), whose last channel is depth z, with two more channels: (N, C + 2, H, W).

        tanh(f (z[i, j+1] − z[i, j]))        tanh(f (z[i+1, j] − z[i, j]))

    f is `factor`. The last column has no right neighbour, and the last row none below it: the channel is 0 there. tanh
    bounds the outlines of the foreground, whose differences are much larger than those of a surface.
    """
    z = images[:, -1:]
    right = nn.functional.pad(z.diff(dim=3), (0, 1))
    below = nn.functional.pad(z.diff(dim=2), (0, 0, 0, 1))
    return torch.cat((images, torch.tanh(factor * right), torch.tanh(factor * below)), 1)
