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

**Holes** (`hole_head`): a small network of its own (`HoleHead`) gives a plane h. With m = 1 where h > 0, else 0, the
depth d becomes d (1 − m). The step has no gradient. The backward takes that of the sigmoid: m is σ(h) there, which is
the straight-through estimator (Bengio et al., arXiv 1308.3432). So

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
from torch import Tensor, nn
from torch.nn import functional as F
from vologan_kernels.precision import to_accumulator

from vologan_fast.config import BlockConfig, GeneratorConfig
from vologan_fast.networks.blocks import ConvBlock, convolution
from vologan_fast.networks.dropout import BITS, random_bits

NOISE, NOISE_OF_QUERIES = 2**18, 2**18 + 1
"""Uses of a sample's key (`training/sample_random.py`): a translation's noise, and that of its features in CUT."""
NOISE_SCALE = 0.05
"""Standard deviation of the noise that the first convolution gets."""
_HEAD_WIDTH = 16
_FIRST_LOGIT = -2.0
"""First bias of the logits. Most pixels are no holes then, and the sigmoid still has a slope."""


def normal(keys: Tensor, channels: int, height: int, width: int, use: int = NOISE) -> Tensor:
    """Return standard normal numbers for each of the `keys` (N,) int64: (N, channels, height, width), float32.

    They are within ±5.77, because u is a multiple of 2⁻²⁴.
    """
    count = channels * height * width
    radius, angle = (random_bits(keys, use, 2 * count).float() / 2**BITS).view(-1, 2, count).unbind(1)
    # 1 − u is in (0, 1], and its logarithm finite.
    numbers = (-2 * torch.log(1 - radius)).sqrt() * torch.cos(2 * math.pi * angle)
    return numbers.view(-1, channels, height, width)


def noise_of(x: Tensor, planes: int, keys: Tensor | None, noise: Tensor | None) -> Tensor | None:
    """Return the noise of a generator with so many noise channels for its images x (N, C, H, W).

    It is standard normal, (N, planes, H, W): the given `noise`, or drawn from the keys (N,), or from torch's generator
    if there are none. None without planes. Raises ValueError for noise of another shape.
    """
    expected = (x.shape[0], planes, *x.shape[2:])  # len(x) would fix the batch in torch.export
    if noise is not None and (not planes or noise.shape != expected):
        what = expected if planes else "None, because the generator has no noise channels"
        raise ValueError(f"noise: expected {what}, found {tuple(noise.shape)}")
    if not planes or noise is not None:
        return noise
    return torch.randn(expected, device=x.device) if keys is None else normal(keys, *expected[1:])


class HoleHead(nn.Module):
    """Logits of the holes of a translation: (N, C_in, H, W), (N, C_out, H, W) and its noise → (N, 1, H, W), float32.

    Three 3×3 convolutions without norm see the image, its translation, and the noise. No gradient reaches the
    translation: a head on the generator's own features makes the translation noisy where holes are random. `channels`
    is C_in + C_out. H and W must be multiples of 2^levels.

    A hole may be larger than the 7 pixels that the convolutions see. So the noise comes at several scales.
    """

    def __init__(self, channels: int, config: GeneratorConfig) -> None:
        super().__init__()
        # A norm would give each image the same share of holes, and spectral norm would bound the logits.
        plain = BlockConfig(norm="none", bias=True, spectral_norm=False, padding=config.padding)
        self.scales = config.levels + 1
        self.blocks = nn.Sequential(
            ConvBlock(channels + self.scales * config.noise_channels, _HEAD_WIDTH, plain),
            ConvBlock(_HEAD_WIDTH, _HEAD_WIDTH, plain),
            convolution(_HEAD_WIDTH, 1, 3, plain),
        )
        last: nn.Conv2d = self.blocks[-1]  # type: ignore[assignment]
        nn.init.constant_(last.bias, _FIRST_LOGIT)  # type: ignore[arg-type]

    def forward(self, x: Tensor, translation: Tensor, noise: Tensor | None) -> Tensor:
        seen = [x, translation.detach()]
        if noise is not None:
            seen += at_scales(noise, self.scales)
        dtype = next(self.parameters()).dtype
        logits: Tensor = self.blocks(torch.cat([tensor.to(dtype) for tensor in seen], 1))
        return to_accumulator(logits)


def at_scales(noise: Tensor, scales: int) -> list[Tensor]:
    """Return noise (N, C, H, W) and its means over squares of 2, 4, …, 2^(scales − 1) pixels a side, of the same shape.

    The means are multiplied by the side, so that they have the variance 1. Between the middles of the squares they are
    interpolated, and have less.
    """
    found = [noise]
    for side in (2**scale for scale in range(1, scales)):
        mean = F.avg_pool2d(noise, side)
        found.append(side * F.interpolate(mean, scale_factor=float(side), mode="bilinear"))
    return found


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
