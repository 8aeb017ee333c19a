"""The principal components of images, and the places of images along them.

The images are pooled to at most 32 × 32 pixels and flattened (`evaluation/components.py`). The components are those of
the images of S and T together. So the axes are the same for S, T and the translations, which are then projected.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vologan_fast.evaluation.components import COMPONENTS, SIDE

__all__ = ["COMPONENTS", "Projection", "pooled", "project"]


@dataclass(frozen=True)
class Projection:
    """The places of sets of images along common components."""

    places: Mapping[str, npt.NDArray[np.float64]]
    """For each set (N, K): the coordinates of its images. K is COMPONENTS, or less for few images."""
    variances: npt.NDArray[np.float64]
    """(K,): the share of the variance of S and T that each component has."""


def pooled(images: Tensor) -> Tensor:
    """Return images (N, C, H, W), with longer sides pooled to at most 32 pixels."""
    height, width = (min(side, SIDE) for side in images.shape[2:])
    return torch.nn.functional.adaptive_avg_pool2d(images.float().cpu(), (height, width))


def project(sets: Mapping[str, Tensor], fitted: tuple[str, ...] = ("S", "T")) -> Projection | None:
    """Return the places of `sets` of pooled images (N, C, h, w) along the components of the `fitted` sets.

    Components without variance are left out. None if there are no components, as with a single image.
    """
    flat = {name: images.flatten(1).double() for name, images in sets.items()}
    basis = torch.cat([flat[name] for name in fitted])
    mean = basis.mean(0)
    _, scales, directions = torch.linalg.svd(basis - mean, full_matrices=False)
    variances = scales.square()
    count = min(COMPONENTS, int((variances > 1e-12 * variances.sum().clamp_min(1e-30)).sum()))
    if not count:
        return None
    # The sign of a component is arbitrary. Its largest entry is positive here, so that a report does not flip.
    chosen = directions[:count]
    chosen = chosen * torch.sign(chosen.gather(1, chosen.abs().argmax(1, keepdim=True)))
    places = {name: ((values - mean) @ chosen.T).numpy() for name, values in flat.items()}
    return Projection(places, (variances[:count] / variances.sum()).numpy())
