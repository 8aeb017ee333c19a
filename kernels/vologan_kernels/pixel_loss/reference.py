"""The image losses in plain PyTorch, on any device: the definition that the kernels are tested against."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vologan_kernels.device import numbers
from vologan_kernels.precision import to_accumulator

C1 = 0.01**2
C2 = 0.03**2
METRICS = ("l1", "l2", "ssim")
"""The rows of weights and metrics. "ssim" is 1 − SSIM."""


class Moments(NamedTuple):
    """The number of valid pixels, the means of prediction a and target b, and the biased σₐ² + σ_b² and σ²(a − b)."""

    pixels: Tensor
    mean_a: Tensor
    mean_b: Tensor
    variances: Tensor
    variance_d: Tensor


def forward(
    predictions: Sequence[Tensor],
    targets: Sequence[Tensor],
    masks: Sequence[Tensor],
    weights: Sequence[float],
    batch: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss (), the metrics (T, 3, C), and the moments (T, 5, N or 1, C) of T pairs.

    `masks` are T masks of the images' shape, or none. `weights` are T · 3 · C numbers, one for each metric. With
    `batch`, moments are taken over the whole batch. The five rows of the moments are the fields of `Moments`.
    """
    of_images, found = _measured(*_masked(predictions, targets, masks), batch)
    rows = torch.stack(of_images, 1)  # (T, 3, images, C, 1, 1)
    metrics = rows.sum((2, 4, 5)) / max(rows.shape[2], 1)
    moments = torch.stack([row.expand_as(found.mean_a) for row in found], 1).flatten(3)
    table = numbers(weights, metrics).view_as(metrics)
    # A metric of weight 0 is no part of the loss, whatever its value: SSIM of huge values is NaN, where L1 is finite.
    return (table * metrics).masked_fill(table == 0, 0).sum(), metrics, moments


def differentiable_loss(
    predictions: Sequence[Tensor],
    targets: Sequence[Tensor],
    masks: Sequence[Tensor],
    weights: Sequence[float],
    batch: bool,
) -> Tensor:
    """The loss () of `forward`, with derivatives of every kind and order.

    A metric of weight 0 is computed from zeros. From the images, it could have a derivative that is NaN, and a factor
    of 0 does not remove it.
    """
    a, b, valid = _masked(predictions, targets, masks)
    loss = torch.zeros((), dtype=a.dtype, device=a.device)
    table = numbers(weights, a).view(len(predictions), len(METRICS), 1, -1, 1, 1)
    for metric, weight in enumerate(table.unbind(1)):
        of_images, _ = _measured(torch.where(weight == 0, 0, a), torch.where(weight == 0, 0, b), valid, batch)
        of_metric = of_images[metric]
        loss = loss + (weight * of_metric).sum() / max(of_metric.shape[1], 1)
    return loss


def _measured(a: Tensor, b: Tensor, valid: Tensor | None, batch: bool) -> tuple[tuple[Tensor, Tensor, Tensor], Moments]:
    """The metrics of each image, or of each batch, as (T, images, C, 1, 1) in the order of `METRICS`; and the moments.

    The images are (T, N, C, H, W).
    """
    mean, count = _mean_over(a, valid, batch)
    mean_a, mean_b = mean(a), mean(b)
    apart_a, apart_b = a - mean_a, b - mean_b
    variances = mean(apart_a.square().add_(apart_b.square()))
    variance_d = mean((apart_a - apart_b).square())
    difference = a - b
    l1, l2 = mean(difference.abs()), mean(difference.square())
    p = (mean_a - mean_b).square() / (mean_a.square() + mean_b.square() + C1)
    r = variance_d / (variances + C2)
    return (l1, l2, p + r - p * r), Moments(count, mean_a, mean_b, variances, variance_d)


def backward(
    grad: Tensor,
    predictions: Sequence[Tensor],
    targets: Sequence[Tensor],
    masks: Sequence[Tensor],
    weights: Sequence[float],
    moments: Tensor,
    batch: bool,
    of_targets: bool,
) -> list[Tensor]:
    """The gradients of the predictions, and with `of_targets` also of the targets, each in its image's dtype."""
    a, b, valid = _masked(predictions, targets, masks)
    table = numbers(weights, moments).view(len(predictions), len(METRICS), 1, -1, 1, 1)
    l1, l2, ssim = zip(_by_metric(weights, len(predictions)), table.unbind(1), strict=True)
    found = Moments(*moments[..., None, None].unbind(1))
    share = grad / (max(moments.shape[2], 1) * found.pixels)
    of_predictions = _pixel_gradient(l1, l2, a - b)
    sides = [(predictions, of_predictions, a, b, found)]
    if of_targets:
        turned = found._replace(mean_a=found.mean_b, mean_b=found.mean_a)
        sides.append((targets, -of_predictions, b, a, turned))
    gradients: list[Tensor] = []
    for images, gradient, own, other, of_side in sides:
        if any(ssim[0]):
            gradient = gradient - _ssim_gradient(ssim, own, other, of_side)
        gradient = share * gradient
        if valid is not None:
            gradient = torch.where(valid, gradient, 0)
        gradients += [_like(image, of_image) for image, of_image in zip(images, gradient.unbind(), strict=True)]
    return gradients


_Row = tuple[Sequence[float], Tensor]
"""The weights of a metric's channels in all pairs, as numbers and as a tensor (T, 1, C, 1, 1)."""


def _pixel_gradient(l1: _Row, l2: _Row, difference: Tensor) -> Tensor:
    """The gradient of L1 and L2 for the prediction, before the mean over the pixels."""
    terms = []
    if any(l1[0]):
        terms.append(_without_zeros(l1, l1[1] * difference.sgn()))
    if any(l2[0]):
        terms.append(_without_zeros(l2, 2 * l2[1] * difference))
    return terms[0] + terms[1] if len(terms) == 2 else terms[0] if terms else torch.zeros_like(difference)


def _ssim_gradient(ssim: _Row, own: Tensor, other: Tensor, moments: Moments) -> Tensor:
    """The gradient of SSIM (not of 1 − SSIM) for the image `own`, before the mean. `mean_a` is the mean of `own`."""
    _, mean, mean_other, variances, variance_d = moments
    d_luminance = mean.square() + mean_other.square() + C1
    d_similarity = variances + C2
    p, r = (mean - mean_other).square() / d_luminance, variance_d / d_similarity
    through_means = 2 * (1 - r) * (mean_other - mean + p * mean) / d_luminance
    apart = own - mean
    through_moments = ((other - mean_other) - apart).add_(apart.mul_(r)).mul_(2 * (1 - p) / d_similarity)
    return _without_zeros(ssim, through_moments.add_(through_means).mul_(ssim[1]))


def _without_zeros(row: _Row, term: Tensor) -> Tensor:
    """A metric's term. In channels of weight 0 it is 0, also where the metric is infinite or NaN."""
    return term if all(row[0]) else torch.where(row[1] == 0, 0, term)


def _by_metric(weights: Sequence[float], pairs: int) -> list[list[float]]:
    """The weights of each metric, for the channels of all pairs."""
    channels = len(weights) // (pairs * len(METRICS))
    rows = [weights[first : first + channels] for first in range(0, len(weights), max(channels, 1))]
    return [[weight for row in rows[metric :: len(METRICS)] for weight in row] for metric in range(len(METRICS))]


def _like(image: Tensor, gradient: Tensor) -> Tensor:
    """A gradient in the dtype and layout of its image."""
    target = torch.empty_like(image)
    same = gradient.dtype == target.dtype and gradient.stride() == target.stride()
    return gradient if same else target.copy_(gradient)


def _masked(
    predictions: Sequence[Tensor], targets: Sequence[Tensor], masks: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Predictions, targets and masks as (T, N, C, H, W). Images have the type of sums. Invalid pixels are 0, even NaN.

    They are contiguous, because torch sums a plane faster if its pixels lie side by side.
    """
    a, b = (torch.stack([to_accumulator(image).contiguous() for image in images]) for images in (predictions, targets))
    if not masks:
        return a, b, None
    valid = torch.stack([mask.expand_as(image) for mask, image in zip(masks, predictions, strict=True)])
    return torch.where(valid, a, 0), torch.where(valid, b, 0), valid


def _mean_over(a: Tensor, valid: Tensor | None, batch: bool) -> tuple[Any, Tensor]:
    """A function for the mean over the valid pixels, of each image or of each batch; and their number, at least 1."""
    dims = (1, 3, 4) if batch else (3, 4)
    if valid is None:
        pixels = math.prod(a.shape[dim] for dim in dims)
        count = a.new_full((1, 1, 1, 1, 1), max(pixels, 1))
        return lambda x: x.sum(dims, keepdim=True) / count, count
    count = valid.sum(dims, keepdim=True).clamp(min=1).to(a.dtype)
    return lambda x: torch.where(valid, x, 0).sum(dims, keepdim=True) / count, count
