"""The image losses in plain PyTorch, on any device: the definition that the kernels are tested against."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vologan_kernels.device import numbers
from vologan_kernels.precision import accumulator_of, to_accumulator

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
    values, moments = [], []
    for i, (prediction, target) in enumerate(zip(predictions, targets, strict=True)):
        images = _masked(prediction, target, masks[i] if masks else None)
        of_images, found = _measured(*images, batch)
        rows = torch.stack(of_images)  # (3, images, C, 1, 1)
        values.append(rows.sum((1, 3, 4)) / max(rows.shape[1], 1))
        moments.append(torch.stack([row.flatten(1).expand_as(found.mean_a.flatten(1)) for row in found]))
    metrics = torch.stack(values)
    table = numbers(weights, metrics).view_as(metrics)
    # A metric of weight 0 is no part of the loss, whatever its value: SSIM of huge values is NaN, where L1 is finite.
    return (table * metrics).masked_fill(table == 0, 0).sum(), metrics, torch.stack(moments)


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
    loss = torch.zeros((), dtype=accumulator_of(predictions[0]), device=predictions[0].device)
    table = numbers(weights, loss).view(len(predictions), len(METRICS), -1, 1, 1)
    for i, (prediction, target) in enumerate(zip(predictions, targets, strict=True)):
        a, b, valid = _masked(prediction, target, masks[i] if masks else None)
        for metric, weight in enumerate(table[i].unbind()):
            of_images, _ = _measured(torch.where(weight == 0, 0, a), torch.where(weight == 0, 0, b), valid, batch)
            of_metric = of_images[metric]
            loss = loss + (weight * of_metric).sum() / max(of_metric.shape[0], 1)
    return loss


def _measured(a: Tensor, b: Tensor, valid: Tensor | None, batch: bool) -> tuple[tuple[Tensor, Tensor, Tensor], Moments]:
    """The metrics of each image, or of the batch, as (images, C, 1, 1) in the order of `METRICS`; and the moments."""
    mean, count = _mean_over(a, valid, batch)
    mean_a, mean_b = mean(a), mean(b)
    apart_a, apart_b = a - mean_a, b - mean_b
    variances = mean(apart_a.square() + apart_b.square())
    variance_d = mean((apart_a - apart_b).square())
    l1, l2 = mean((a - b).abs()), mean((a - b).square())
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
    gradients: list[list[Tensor]] = [[], []]
    table = numbers(weights, moments).view(len(predictions), len(METRICS), -1)
    for i, (prediction, target) in enumerate(zip(predictions, targets, strict=True)):
        a, b, valid = _masked(prediction, target, masks[i] if masks else None)
        count, mean_a, mean_b, variances, variance_d = Moments(*moments[i][..., None, None])
        w1, w2, w3 = table[i][..., None, None]
        d_luminance = mean_a.square() + mean_b.square() + C1
        d_similarity = variances + C2
        p, r = (mean_a - mean_b).square() / d_luminance, variance_d / d_similarity
        share = grad / (max(moments.shape[2], 1) * count)
        # For the target, with the other sign. A metric of weight 0 has no gradient, also where it is infinite or NaN.
        towards = w1 * (a - b).sgn() + torch.where(w2 == 0, 0, 2 * w2 * (a - b))
        apart_a, apart_b = a - mean_a, b - mean_b
        for side, (own, other, apart, apart_other) in enumerate(
            [(mean_a, mean_b, apart_a, apart_b), (mean_b, mean_a, apart_b, apart_a)][: 1 + of_targets]
        ):
            through_means = 2 * (1 - r) * (other - own + p * own) / d_luminance
            through_moments = 2 * (1 - p) / d_similarity * (apart_other - apart + r * apart)
            sign = 1 if side == 0 else -1
            through_ssim = torch.where(w3 == 0, 0, w3 * (through_means + through_moments))
            gradient = share * (sign * towards - through_ssim)
            if valid is not None:
                gradient = torch.where(valid, gradient, 0)
            gradients[side].append(torch.empty_like((prediction, target)[side]).copy_(gradient))
    return gradients[0] + gradients[1]


def _masked(prediction: Tensor, target: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Both images in the type of sums. Invalid pixels, which may be NaN, are 0. And the mask in the images' shape."""
    a, b = to_accumulator(prediction), to_accumulator(target)
    if mask is None:
        return a, b, None
    valid = mask.expand_as(a)
    return torch.where(valid, a, 0), torch.where(valid, b, 0), valid


def _mean_over(a: Tensor, valid: Tensor | None, batch: bool) -> tuple[Any, Tensor]:
    """A function for the mean over the valid pixels, of each image or of the batch; and their number, at least 1."""
    dims = (0, 2, 3) if batch else (2, 3)
    if valid is None:
        pixels = a.numel() // max(a.shape[1], 1) if batch else a.shape[2] * a.shape[3]
        count = a.new_full((1, 1, 1, 1), max(pixels, 1))
        return lambda x: x.sum(dims, keepdim=True) / count, count
    count = valid.sum(dims, keepdim=True).clamp(min=1).to(a.dtype)
    return lambda x: torch.where(valid, x, 0).sum(dims, keepdim=True) / count, count
