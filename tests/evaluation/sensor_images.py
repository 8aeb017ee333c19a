"""Images for tests of the sensor statistics: figures of two surfaces, seen by a sensor with known faults."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def sensor_images(count: int, size: int, seed: int, *, noise: float = 0.004, holes: float = 0.02) -> Tensor:
    """Return (count, 4, size, size) images of a sensor.

    Each shows a sloped square in front of a larger sloped one, on background. The depth has steps of three pixels
    between the surfaces, white noise, and holes.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, 1, 1, generator=generator)

    y, x = torch.meshgrid(torch.arange(size) / size, torch.arange(size) / size, indexing="ij")
    left, top = uniform(0.05, 0.15), uniform(0.05, 0.15)
    figure = (x > left) & (x < left + 0.8) & (y > top) & (y < top + 0.8)
    front = (x > left + 0.25) & (x < left + 0.6) & (y > top + 0.2) & (y < top + 0.65)
    plane = uniform(0.5, 0.7) + uniform(-0.1, 0.1) * (x - 0.5) + uniform(-0.1, 0.1) * (y - 0.5)
    clean = plane - uniform(0.15, 0.25) * _blurred(front.float())
    depth = clean + noise * torch.randn(count, size, size, generator=generator)
    lost = torch.rand(count, size, size, generator=generator) < holes
    colour = 0.3 + 0.3 * torch.rand(count, 3, 1, 1, generator=generator) + 0.1 * front[:, None]
    depth = torch.where(figure & ~lost, depth.clamp(0.01, 1), 0)
    return torch.cat([colour * figure[:, None], depth[:, None]], 1)


def _blurred(mask: Tensor) -> Tensor:
    """Average over 3 × 3 pixels."""
    return functional.avg_pool2d(mask[:, None], 3, 1, 1, count_include_pad=False)[:, 0]


def with_depth(images: Tensor, depth: Tensor) -> Tensor:
    """Return the images with another depth (N, H, W)."""
    return torch.cat([images[:, :3], depth[:, None]], 1)
