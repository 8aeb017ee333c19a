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

**Holes** (`hole_head`): the last convolution has one more plane, h. With m = 1 where h > 0, else 0, the depth d
becomes d (1 − m). The step has no gradient. The backward takes that of the sigmoid: m is σ(h) there, which is the
straight-through estimator (Bengio et al., arXiv 1308.3432). So

    ∂/∂d = 1 − m        ∂/∂h = −d σ(h) (1 − σ(h))

The holes are as random as the noise makes h. Independent draws for each pixel, as with a relaxed Bernoulli variable,
would give single pixels, and the holes of a sensor are areas.

A generator without holes does not learn them from a discriminator through d (1 − m): there, the gradient says how a
slightly smaller depth looks, which is never a hole. So a further loss compares the shares of holes (`hole_share`).

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
    soft = torch.sigmoid(hole_logits)
    hole = (hole_logits > 0).to(soft.dtype) + (soft - soft.detach())  # the difference is exactly 0
    return torch.cat((image, hole), 1)


def measured(translation: Tensor, *, learn_holes: bool = True) -> Tensor:
    """Return the image (N, C, H, W) of a translation with its holes (N, C + 1, H, W): depth 0 in the holes.

    Without `learn_holes`, the holes get no gradient from it.
    """
    image, hole = translation[:, :-1], translation[:, -1:]
    hole = hole if learn_holes else hole.detach()
    return torch.cat((image[:, :-1], image[:, -1:] * (1 - hole)), 1)


def hole_share(translation: Tensor, source: Tensor, real: Tensor) -> Tensor:
    """Return the mean squared difference between the shares of holes in translations and in real images: a scalar.

    `translation` (N, C + 1, H, W) has its holes as last channel, and was made of `source` (N, C', H, W). `real` are N
    images of T. They are not the truth of the translations: the mean of many such squares is smallest where the
    expected shares are equal. A share is that of the figure, the pixels at which the image shows something. Without
    colour in T, it is that of all pixels, and background counts as hole.
    """
    hole, background = translation[:, -1:], source.amax(1, keepdim=True) == 0
    hole_of_t, background_of_t = holes(real), real.amax(1, keepdim=True) == 0
    if real.shape[1] == 1:
        hole = hole.masked_fill(background, 1.0)
        background, background_of_t = torch.zeros_like(background), torch.zeros_like(background_of_t)

    def share(plane: Tensor, left_out: Tensor) -> Tensor:
        return plane.masked_fill(left_out, 0).sum((1, 2, 3)) / (~left_out).sum((1, 2, 3)).clamp_min(1)

    return (share(hole, background) - share(hole_of_t.to(hole.dtype), background_of_t)).square().mean()


def holes(images: Tensor) -> Tensor:
    """Return where images (N, C, H, W) have holes: (N, 1, H, W) bool.

    A hole is depth 0 at a pixel that has a colour. If the images have no colour, it is any depth 0.
    """
    depth, colour = images[:, -1:], images[:, :-1]
    hole = depth == 0
    return hole & (colour.amax(1, keepdim=True) > 0) if colour.shape[1] else hole


def as_measured(translation: Tensor, like: Tensor) -> Tensor:
    """Return the image of a translation (N, C + 1, H, W) with the holes of another image, `like` (N, C, H, W)."""
    image = translation[:, :-1]
    return torch.cat((image[:, :-1], image[:, -1:].masked_fill(holes(like), 0.0)), 1)
