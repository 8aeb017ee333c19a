"""Intervals by the bootstrap over images [Efron and Tibshirani 1993, "An introduction to the bootstrap"].

A statistic of a set of images is a function of sums over its images. So each image is measured once. A resample draws
as many images as the set has, with replacement: it is a row of counts, and the sums of all resamples are one product of
matrices.

Two candidates that are made of the same images use the same counts. So the difference between them has an interval too,
in which the choice of the images cancels.
"""

from __future__ import annotations

import torch
from torch import Tensor


def resample(count: int, images: int, seed: int) -> Tensor:
    """Return (count, images) float64: how often each image occurs in each of `count` resamples."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(images, (count, images), generator=generator)
    return torch.zeros(count, images, dtype=torch.float64).scatter_add_(1, drawn, torch.ones_like(drawn).double())


def halves(count: int, images: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return two (count, images) float64: 1 for the images of a random half, and of the other half.

    Both halves have as many images. If the number is odd, one image is in neither.
    """
    generator = torch.Generator().manual_seed(seed)
    place = torch.rand(count, images, generator=generator).argsort(1)
    half = images // 2
    return (place < half).double(), ((place >= half) & (place < 2 * half)).double()


def centring(counts: Tensor) -> Tensor:
    """Return (B, N, N) for counts (B, N): matrices that centre a set, and weight its rows.

    Times the set (N, D), row i is √(count i) · (xᵢ − the mean of the resample).
    """
    share = counts / counts.sum(1, keepdim=True)
    return counts.sqrt()[:, :, None] * (torch.eye(counts.shape[1], dtype=counts.dtype) - share[:, None, :])


def interval(replicates: Tensor, level: float = 0.95) -> tuple[float, float]:
    """Return the percentile interval of the replicates (B,): their quantiles at (1 ± level) / 2. NaN counts as none."""
    found = replicates[~replicates.isnan()]
    if not len(found):
        return float("nan"), float("nan")
    low, high = torch.quantile(found.double(), torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64))
    return float(low), float(high)


def centred(replicates: Tensor, whole: Tensor) -> Tensor:
    """Return replicates of distances without the bias of resampling: (B, …) and (…) → (B, …).

    A resample has repeated images, so it is farther from everything than the set itself: on squares, by about the
    variance of the sampling. The squares are shifted until their mean is the square of the `whole` set's distance
    [bias correction: Efron and Tibshirani 1993, chapter 10]. Negative squares become 0.
    """
    squares = replicates.square()
    return (squares - squares.nanmean(0) + whole.square()).clamp_min(0).sqrt()
