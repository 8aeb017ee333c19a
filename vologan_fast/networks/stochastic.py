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
becomes d (1 − m). The step has no gradient. The backward takes that of the sigmoid: m is σ(h − HOLE_BIAS) there, which
is the straight-through estimator (Bengio et al., arXiv 1308.3432). So

    ∂/∂d = 1 − m        ∂/∂h = −d σ(h − HOLE_BIAS) (1 − σ(h − HOLE_BIAS))

The holes are as random as the noise makes h. Independent draws for each pixel, as with a relaxed Bernoulli variable,
would give single pixels, and the holes of a sensor are areas.

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
HOLE_BIAS = 0.0
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
    """Return an image (N, C, H, W) and its holes (N, 1, H, W), 1 where the depth is not measured: (N, C + 1, H, W)."""
    centred = hole_logits - HOLE_BIAS
    soft = torch.sigmoid(centred)
    hole = (centred > 0).to(soft.dtype) + (soft - soft.detach())  # the difference is exactly 0
    return torch.cat((image, hole), 1)


def measured(translation: Tensor, *, learn_holes: bool = True) -> Tensor:
    """Return the image (N, C, H, W) of a translation with its holes (N, C + 1, H, W): depth 0 in the holes.

    Without `learn_holes`, the holes get no gradient from it.
    """
    image, hole = translation[:, :-1], translation[:, -1:]
    hole = hole if learn_holes else hole.detach()
    return torch.cat((image[:, :-1], image[:, -1:] * (1 - hole)), 1)


def as_measured(translation: Tensor, like: Tensor) -> Tensor:
    """Return the image of a translation (N, C + 1, H, W) with the holes of another image, `like` (N, C, H, W).

    A hole there is depth 0 at a pixel that has a colour. If the image has no colour, it is any depth 0.
    """
    depth, colour = like[:, -1:], like[:, :-1]
    hole = depth == 0
    if colour.shape[1]:
        hole = hole & (colour.amax(1, keepdim=True) > 0)
    image = translation[:, :-1]
    return torch.cat((image[:, :-1], image[:, -1:].masked_fill(hole, 0.0)), 1)
