"""The parametric noise model: it finds the parameters with which images were made, and keeps what it must not change."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vologan_fast.evaluation.noise_model import NoiseModel, fit_noise_model

KINECT = NoiseModel(sigma=0.002, sigma_growth=1.0, jitter=0.5)
TIME_OF_FLIGHT = NoiseModel(
    gain=(0.9, 1.0, 0.8, 1.08),
    offset=(0.05, 0.0, 0.02, -0.03),
    intensity_bias=0.04,
    footprint=1.2,
    beyond=0.3,
    sigma=0.002,
    sigma_growth=0.5,
    sigma_dark=1.0,
    correlation=0.8,
    hole_weights=(-9.0, 2.0, 4.0, 4.0, 0.0, 2.0, 0.0),
    hole_correlation=1.0,
)
QUIET = NoiseModel(sigma=0.0004, footprint=0.5, beyond=0.1)
SENSORS = {"kinect": KINECT, "time of flight": TIME_OF_FLIGHT, "quiet": QUIET}


def scenes(count: int, seed: int, size: int = 48) -> Tensor:
    """Return clean images of bumpy bodies, whose clothes have patches of different brightness."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.linspace(-1, 1, size), torch.linspace(-1, 1, size), indexing="ij")
    images = torch.zeros(count, 4, size, size)
    for image in images:
        a, b, c, d, e, f = torch.rand(6, generator=generator).tolist()
        rows, columns = (y - 0.3 * (a - 0.5)) / (0.6 + 0.3 * b), (x - 0.3 * (c - 0.5)) / (0.5 + 0.3 * d)
        inside = rows**2 + columns**2 < 1
        depth = 0.25 + 0.4 * e + 0.12 * (rows**2 + columns**2) + 0.15 * (f - 0.5) * rows
        depth = depth + 0.004 * torch.sin(9 * x + 6 * a) * torch.sin(7 * y + 6 * b)
        patches = torch.rand(1, 3, 6, 6, generator=generator)
        colour = torch.nn.functional.interpolate(patches, size=(size, size), mode="nearest")[0] * 0.9 + 0.05
        image[:] = torch.cat([colour, depth[None]]) * inside
    return images


@pytest.fixture(scope="module")
def fitted() -> dict[str, NoiseModel]:
    """Return the model that is fitted to other scenes, seen through each of the sensors."""
    return {name: fit_noise_model(scenes(48, 0), sensor(scenes(48, 1), 5)) for name, sensor in SENSORS.items()}
