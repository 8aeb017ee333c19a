"""Random crop, change of size, and colour jitter of a batch, the same for all loaders.

A loader makes images of `loaded_size`, flipped and shifted. `Augmentation` cuts images of the final size out of them,
at a random place and in a random size, and then changes their colours. Both domains, and all samples, have numbers of
their own (`Sampler.numbers`).

Depth is taken from the nearest pixel, so no depth is invented between a surface and a hole. Colour is interpolated
linearly between the pixels that show something. A pixel of 0 in all channels, background or beyond the image, stays 0
in all channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vologan_fast.config import AugmentConfig, Channels

NUMBERS = 6
"""Random numbers of a sample: row, column, size, brightness, contrast, saturation. Each is in [0, 1)."""
_LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue (Rec. 601)."""


def loaded_size(size: tuple[int, int], augment: AugmentConfig) -> tuple[int, int]:
    """Return (height, width) of the images that a random crop is cut out of."""
    height, width = (round(side * (1 + augment.crop)) for side in size)
    return height, width


def is_needed(augment: AugmentConfig) -> bool:
    """Return whether batches are changed at all."""
    return max(augment.crop, augment.scale, augment.jitter) > 0


@dataclass(frozen=True)
class Augmentation:
    """Changes the images of one domain's batches."""

    size: tuple[int, int]
    """Height and width of the results."""
    config: AugmentConfig
    channels: Channels

    def __call__(self, batch: Tensor, numbers: Tensor) -> Tensor:
        """Return (N, C, *size) channels_last of a batch (N, C, H, W). `numbers` (N, NUMBERS) are on its device."""
        images = batch.permute(0, 2, 3, 1)
        row, column, scale, *of_color = numbers.unbind(1)
        if images.shape[1:3] != self.size or self.config.scale:
            images = self._cut(images, row, column, scale)
        if self.config.jitter and self.channels.color:
            images = self._jittered(images, *of_color)
        return images.permute(0, 3, 1, 2)

    def _cut(self, images: Tensor, row: Tensor, column: Tensor, scale: Tensor) -> Tensor:
        """Cut the results out of images (N, H, W, C): (N, h, w, C).

        The window's corner is floor(number · (places)), and the window is enlarged about its centre by
        (1 + scale)^(2 · number − 1).
        """
        factor = (1 + self.config.scale) ** (2 * scale - 1)
        places = []
        for number, loaded, side in zip((row, column), images.shape[1:3], self.size, strict=True):
            first = (number * (loaded - side + 1)).floor().clamp(max=loaded - side)  # float32 may round up to 1
            middle = (side - 1) / 2
            pixel = torch.arange(side, device=images.device, dtype=torch.float32)
            places.append(first[:, None] + middle + (pixel - middle) / factor[:, None])
        if not self.config.scale:
            return _at(images, *(place.long() for place in places))
        nearest = _at(images, *((place + 0.5).floor().long() for place in places))
        if not self.channels.color:
            return nearest
        color = self.channels.color
        seen = (nearest.amax(3, keepdim=True) > 0).to(images.dtype)
        return torch.cat((_interpolated(images, *places)[..., :color] * seen, nearest[..., color:]), dim=3)

    def _jittered(self, images: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor) -> Tensor:
        """Change the colour of images (N, H, W, C).

        Colour is multiplied by the first factor. The second is for the distance from the mean grey of what the image
        shows, and the third for the distance from each pixel's own grey. All factors are in [1 − jitter, 1 + jitter).
        """
        color, rest = images.split((self.channels.color, int(self.channels.depth)), dim=3)
        seen = (images.amax(3, keepdim=True) > 0).to(images.dtype)
        factors = (1 + self.config.jitter * (2 * number - 1) for number in (brightness, contrast, saturation))
        by_brightness, by_contrast, by_saturation = (factor.view(-1, 1, 1, 1) for factor in factors)
        color = color * by_brightness
        count = seen.sum((1, 2, 3), keepdim=True).clamp(min=1)
        mean = (_grey(color) * seen).sum((1, 2, 3), keepdim=True) / count
        color = mean + (color - mean) * by_contrast
        grey = _grey(color)
        color = grey + (color - grey) * by_saturation
        return torch.cat((color.clamp(0, 1) * seen, rest), dim=3)


def _grey(color: Tensor) -> Tensor:
    """Return the luma (N, H, W, 1) of colour (N, H, W, 3 or 1)."""
    if color.shape[3] == 1:
        return color
    red, green, blue = (weight * level for weight, level in zip(_LUMA, color.split(1, dim=3), strict=True))
    return red + green + blue


def _at(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return the pixels of images (N, H, W, C) at rows (N, h) and columns (N, w). They are 0 outside of the image."""
    n, height, width, _ = images.shape
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
    index = torch.arange(n, device=images.device)[:, None, None]
    found = images[index, rows.clamp(0, height - 1)[:, :, None], columns.clamp(0, width - 1)[:, None, :]]
    return found * inside[..., None]


def _interpolated(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return the pixels at fractional places, linear between the neighbours that are not 0 in all channels."""
    total, weights = torch.zeros((), device=images.device), torch.zeros((), device=images.device)
    top, left = rows.floor(), columns.floor()
    for down in (0, 1):
        for right in (0, 1):
            neighbour = _at(images, (top + down).long(), (left + right).long())
            weight = (1 - (rows - top - down).abs())[:, :, None] * (1 - (columns - left - right).abs())[:, None, :]
            weight = weight[..., None] * (neighbour.amax(3, keepdim=True) > 0)
            total, weights = total + weight * neighbour, weights + weight
    return total / weights.clamp(min=1e-6)
