"""Differentiable augmentation of all images that a discriminator judges (DiffAugment, Zhao et al., arXiv 2006.10738).

The discriminator never judges an image as it is, neither a real one nor a translation, so it cannot learn a small data
set by heart. The generators get their gradient through the augmentation, so they do not learn to make it.

    color         x + b, b in [−¼, ¼); then the distance from each pixel's grey, times [0, 2); then the distance from
                  the image's mean, times [½, 1½). The paper's images are in [−1, 1] and its b is twice as large.
    translation   a shift by up to 1/8 of each side, with zeros from outside
    cutout        a rectangle of half the height and half the width becomes 0. Its centre is anywhere in the image

They run in this order. `color` does not change depth. All random numbers are uniform. They depend on the sample's key
of the pass: real and translated images have different ones, and a translation has the same ones in the generator's and
in the discriminator's loss of a step.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from vologan_fast.training.sample_random import COLOR, CUTOUT, TRANSLATION, uniform


def augmented(images: Tensor, keys: Tensor, names: Collection[str], colour_channels: int) -> Tensor:
    """Return randomly changed images, (N, C, H, W) as `images`, which have values in [0, 1].

    `names` are the kinds of change. `colour_channels` come first in the images; depth may follow. `keys` (N,) are the
    samples' keys. The result may leave [0, 1], and is differentiable in `images`.
    """
    if "color" in names and colour_channels:
        colour = _color(images[:, :colour_channels], keys)
        images = torch.cat((colour, images[:, colour_channels:]), dim=1)
    if "translation" in names:
        images = _translation(images, keys)
    if "cutout" in names:
        images = _cutout(images, keys)
    return images


def _color(x: Tensor, keys: Tensor) -> Tensor:
    random = uniform(keys, COLOR, 3).to(x.dtype)
    brightness, saturation, contrast = (number.view(-1, 1, 1, 1) for number in random.unbind(1))
    x = x + (brightness - 0.5) / 2
    grey = x.mean(1, keepdim=True)
    x = grey + (x - grey) * (2 * saturation)
    mean = x.mean((1, 2, 3), keepdim=True)
    return mean + (x - mean) * (contrast + 0.5)


def _translation(x: Tensor, keys: Tensor) -> Tensor:
    random = uniform(keys, TRANSLATION, 2)
    for of_side, dim in zip(random.unbind(1), (2, 3), strict=True):
        side = x.shape[dim]
        most = int(side / 8 + 0.5)
        shift = (of_side * (2 * most + 1)).long() - most
        from_place = torch.arange(side, device=x.device) - shift[:, None]  # (N, side)
        shape = (len(x), 1, side, 1) if dim == 2 else (len(x), 1, 1, side)
        inside = ((from_place >= 0) & (from_place < side)).view(shape)
        x = x.gather(dim, from_place.clamp(0, side - 1).view(shape).expand_as(x)) * inside
    return x


def _cutout(x: Tensor, keys: Tensor) -> Tensor:
    random = uniform(keys, CUTOUT, 2)
    cut = torch.ones((), dtype=torch.bool, device=x.device)
    for of_side, dim in zip(random.unbind(1), (2, 3), strict=True):
        side = x.shape[dim]
        length = int(side / 2 + 0.5)
        # A centre of an even length lies between two pixels, which has one place more.
        first = (of_side * (side + 1 - length % 2)).long()[:, None] - length // 2
        place = torch.arange(side, device=x.device)
        within = (place >= first) & (place < first + length)
        cut = cut & within.view((len(x), 1, side, 1) if dim == 2 else (len(x), 1, 1, side))
    return x * ~cut
