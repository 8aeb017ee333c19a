"""The losses of a step as plain operations of PyTorch, as GAN code without our kernels computes them.

They take the arguments of `vologan_kernels.pixel_losses` and `adversarial_losses`, and stand in their place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vologan_kernels.adversarial_loss import ROLES
from vologan_kernels.adversarial_loss import reference as adversarial_loss
from vologan_kernels.pixel_loss import reference as pixel_loss


def plain_pixel_losses(pairs: Any, weights: Any, channel_weight: Any, statistics: str = "image") -> Any:
    of_metrics = channel_weight if isinstance(channel_weight[0], Sequence) else [channel_weight] * 3
    table = [
        weight * of_channel
        for of_pair in weights
        for weight, of_metric in zip(of_pair, of_metrics, strict=True)
        for of_channel in of_metric
    ]
    images, targets = zip(*pairs, strict=True)
    loss, metrics, _ = pixel_loss.forward(images, targets, [], table, statistics == "batch")
    return loss, metrics.detach()


def plain_adversarial_losses(logits: Any, roles: Any, kind: str, weights: Any = None) -> Any:
    numbers = [ROLES.index(role) for role in roles]
    loss, values = adversarial_loss.forward(logits, numbers, weights or [1.0] * len(logits), kind)
    return loss, values.detach()
