"""Generators that draw: noise in their input, and a head for depth that is not measured.

A sensor measures one scene differently each time, and some pixels not at all. A generator without noise has one result
for an image. Its bounded output cannot jump from a surface to "not measured", which is depth 0. Two options change this
for the generator to T. T is the domain of the sensor.

**Noise** (`noise_channels`): planes of standard normal numbers join the image at the network's input, as in the
conditional GANs of Mirza and Osindero (arXiv 1411.1784) and in augmented CycleGAN (arXiv 1802.10151). So any network
can use them at any scale, and no network needs another form. The planes are multiplied by NOISE_SCALE, because they
would otherwise outweigh an image in [0, 1]. In training, the numbers follow from the sample's key, as the masks
of the dropout do (`dropout.py`). They are Box and Muller's (1958, doi 10.1214/aoms/1177706645): with uniform u and v,

    √(−2 ln u) · cos(2π v)

**Holes** (`hole_head`): the last convolution has one more plane, h. With m = 1 where h > HOLE_BIAS, else 0, the depth d
becomes d (1 − m). The discriminator of T gets the plane m as one more channel, for real images too (`with_plane`). The
step has no gradient. The backward takes that of the sigmoid for m, which is the straight-through estimator (Bengio et
al., arXiv 1308.3432), and m is a constant in d (1 − m). So

    ∂(d (1 − m))/∂d = 1 − m        ∂(d (1 − m))/∂h = 0        ∂m/∂h = σ(h − HOLE_BIAS) (1 − σ(h − HOLE_BIAS))

Through d (1 − m), the discriminator would say how a slightly smaller depth looks, and that is never a hole. The holes
are as random as the noise makes h. Independent draws for each pixel, as by a relaxed Bernoulli variable (arXiv
2102.11952 for the lost points of a LiDAR), would give single pixels, and the holes of a depth camera are areas.

Where a result is compared with an image that it should be equal to, it gets the holes of this image (`as_measured`).
Nobody can foresee where a sensor will measure nothing next time, so no such loss may punish another place.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vologan_fast.config import GeneratorConfig
from vologan_fast.networks.blocks import in_range
from vologan_fast.networks.dropout import BITS, random_bits

NOISE, NOISE_OF_QUERIES = 2**18, 2**18 + 1
"""Uses of a sample's key (`training/sample_random.py`): a translation's noise, and that of its features in CUT."""
HOLE_BIAS = 2.0
"""A generator begins with few holes, because its first h are mostly below this value."""
NOISE_SCALE = 0.05
"""Standard deviation of the noise that the first convolution gets."""


def normal(keys: Tensor, channels: int, height: int, width: int, use: int = NOISE) -> Tensor:
    """Return standard normal numbers for each of the `keys` (N,) int64: (N, channels, height, width), float32.

    They are within ±5.77, because u is a multiple of 2⁻²⁴.
    """
    count = channels * height * width
    radius, angle = (random_bits(keys, use, 2 * count).float() / 2**BITS).view(-1, 2, count).unbind(1)
    # 1 − u is in (0, 1], and its logarithm finite.
    numbers = (-2 * torch.log(1 - radius)).sqrt() * torch.cos(2 * math.pi * angle)
    return numbers.view(-1, channels, height, width)


def network_input(x: Tensor, config: GeneratorConfig, keys: Tensor | None, noise: Tensor | None) -> Tensor:
    """Return the input of a generator's first convolution: x (N, C, H, W) in the range it reads, then the noise.

    `noise` is (N, noise_channels, H, W), standard normal. None: drawn from the keys (N,), or from torch's generator if
    there are none. Raises ValueError for noise of another shape.
    """
    y, planes = in_range(x, config), config.noise_channels
    expected = (x.shape[0], planes, *x.shape[2:])  # len(x) would fix the batch in torch.export
    if noise is not None and (not planes or noise.shape != expected):
        what = expected if planes else "None, because the generator has no noise channels"
        raise ValueError(f"noise: expected {what}, found {tuple(noise.shape)}")
    if not planes:
        return y
    if noise is None:
        noise = torch.randn(expected, device=x.device) if keys is None else normal(keys, *expected[1:])
    return torch.cat((y, NOISE_SCALE * noise.to(y)), 1)


def with_holes(image: Tensor, hole_logits: Tensor) -> Tensor:
    """Return an image (N, C, H, W) without holes and the plane m of its holes (N, 1, H, W): (N, C + 1, H, W)."""
    centred = hole_logits - HOLE_BIAS
    soft = torch.sigmoid(centred)
    hole = (centred > 0).to(soft.dtype) + (soft - soft.detach())  # the difference is exactly 0
    return torch.cat((image, hole), 1)


def measured(translation: Tensor) -> Tensor:
    """Return what `with_holes` returned (N, C + 1, H, W), with depth 0 in the holes. This is what a discriminator sees.

    Without its last channel, it is the image.
    """
    depth, hole = translation[:, -2:-1], translation[:, -1:]
    return torch.cat((translation[:, :-2], depth * (1 - hole.detach()), hole), 1)


def with_plane(images: Tensor) -> Tensor:
    """Return real images (N, C, H, W) and the plane of their holes, as a discriminator sees them: (N, C + 1, H, W)."""
    return torch.cat((images, holes(images).to(images.dtype)), 1)


def as_measured(translation: Tensor, like: Tensor) -> Tensor:
    """Return the image of what `with_holes` returned, with the holes of another image, `like` (N, C, H, W)."""
    depth = translation[:, -2:-1].masked_fill(holes(like), 0.0)
    return torch.cat((translation[:, :-2], depth), 1)


def holes(images: Tensor) -> Tensor:
    """Return where images (N, C, H, W) have holes: (N, 1, H, W) bool.

    A hole is depth 0 at a pixel that has a colour. If the images have no colour, it is any depth 0.
    """
    depth, colour = images[:, -1:], images[:, :-1]
    hole = depth == 0
    return hole & (colour.amax(1, keepdim=True) > 0) if colour.shape[1] else hole
