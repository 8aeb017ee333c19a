"""Losses between two images that show the same scene: weighted L1 and L2, and the global structural similarity.

    weighted_l1 = Σ_c w_c · mean_{n,h,w} |a − b|            weighted_l2 = Σ_c w_c · mean_{n,h,w} (a − b)²

    global_ssim = Σ_c w_c · mean_n (1 − l · k · s)

with the SSIM of Wang et al. (IEEE TIP 2004, doi 10.1109/TIP.2003.819861) taken from the moments of all pixels of a
channel instead of a sliding window:

    l = (2 μ₁μ₂ + C₁) / (μ₁² + μ₂² + C₁),  k = (2 σ₁σ₂ + C₂) / (σ₁² + σ₂² + C₂),  s = (σ₁₂ + C₃) / (σ₁σ₂ + C₃)

C₁ = 0.01², C₂ = 0.03². With C₃ = C₂/2 the product k·s is (2 σ₁₂ + C₂) / (σ₁² + σ₂² + C₂): the standard deviations
cancel, and with them the square root whose gradient is infinite at the variance of a constant image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from vologan_kernels.precision import to_accumulator

_C1 = 0.01**2
_C2 = 0.03**2


def weighted_l1(prediction: Tensor, target: Tensor, channel_weight: Sequence[float] | None = None) -> Tensor:
    """Σ_c w_c · mean |prediction − target| over (N, C, H, W) tensors; float32, or float64 for float64 images.

    `channel_weight` has one number a channel; None weighs each with 1. Raises ValueError for shapes that differ.
    """
    _check("weighted_l1", prediction, target, channel_weight)
    return _weighted_sum(
        (to_accumulator(prediction) - to_accumulator(target)).abs().mean(dim=(0, 2, 3)), channel_weight
    )


def weighted_l2(prediction: Tensor, target: Tensor, channel_weight: Sequence[float] | None = None) -> Tensor:
    """Σ_c w_c · mean (prediction − target)²; arguments and result as `weighted_l1`."""
    _check("weighted_l2", prediction, target, channel_weight)
    return _weighted_sum(
        (to_accumulator(prediction) - to_accumulator(target)).square().mean(dim=(0, 2, 3)), channel_weight
    )


def global_ssim(
    prediction: Tensor,
    target: Tensor,
    channel_weight: Sequence[float] | None = None,
    statistics: Literal["image", "batch"] = "image",
) -> Tensor:
    """Σ_c w_c · (1 − SSIM_c) of (N, C, H, W) images in [0, 1], as a float32 scalar in [0, 2 Σ w].

    `statistics`: moments over each image, then the mean over images; or over the whole batch. Raises ValueError for
    shapes that differ or an unknown `statistics`.
    """
    _check("global_ssim", prediction, target, channel_weight)
    if statistics not in ("image", "batch"):
        raise ValueError(f"global_ssim: statistics must be 'image' or 'batch', found {statistics!r}")
    dims = (2, 3) if statistics == "image" else (0, 2, 3)
    a, b = to_accumulator(prediction), to_accumulator(target)
    variance_a, mean_a = torch.var_mean(a, dim=dims, correction=0, keepdim=True)
    variance_b, mean_b = torch.var_mean(b, dim=dims, correction=0, keepdim=True)
    covariance = ((a - mean_a) * (b - mean_b)).mean(dim=dims, keepdim=True)
    luminance = (2 * mean_a * mean_b + _C1) / (mean_a.square() + mean_b.square() + _C1)
    contrast_structure = (2 * covariance + _C2) / (variance_a + variance_b + _C2)
    return _weighted_sum((1 - luminance * contrast_structure).mean(dim=(0, 2, 3)), channel_weight)


def cycle_loss(
    prediction: Tensor,
    target: Tensor,
    *,
    channel_weight: Sequence[float] | None = None,
    l1_weight: float = 10.0,
    ssim_weight: float = 1.0,
) -> Tensor:
    """`l1_weight` · weighted_l1 + `ssim_weight` · global_ssim per image, a scalar as those."""
    return l1_weight * weighted_l1(prediction, target, channel_weight) + ssim_weight * global_ssim(
        prediction, target, channel_weight
    )


def _weighted_sum(per_channel: Tensor, channel_weight: Sequence[float] | None) -> Tensor:
    if channel_weight is None:
        return per_channel.sum()
    return sum((weight * value for weight, value in zip(channel_weight, per_channel.unbind(), strict=True)), 0.0)  # type: ignore[return-value]


def _check(name: str, prediction: Tensor, target: Tensor, channel_weight: Sequence[float] | None) -> None:
    if prediction.shape != target.shape or prediction.dim() != 4:
        raise ValueError(
            f"{name}: prediction and target must be (N, C, H, W) of one shape, "
            f"found {tuple(prediction.shape)} and {tuple(target.shape)}"
        )
    if channel_weight is not None and len(channel_weight) != prediction.shape[1]:
        raise ValueError(f"{name}: channel_weight must have {prediction.shape[1]} numbers, found {len(channel_weight)}")
