"""The contrastive loss of CUT (Park et al., arXiv 2007.15651, equations 3 and 4).

A vector q belongs to a position of the translated image, and k to a position of the original. Of all vectors k of the
same image, q should be nearest to the one of its own position p:

    loss(p) = -log( exp(q_p · k_p / τ) / Σ_r exp(q_p · k_r / τ) )

The sum runs over the sampled positions r of one image and one level. The loss is the mean over the positions, the
images and the levels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from vologan_fast.networks.dropout import random_bits
from vologan_fast.training.sample_random import POSITIONS


def positions(keys: Tensor, features: Sequence[Tensor], count: int) -> list[Tensor]:
    """Return `count` different random positions of each image, for each level of features: (N, P) int64.

    P is less than `count` if the level has fewer positions. The positions depend on the keys (N,) and the level only.
    """
    found = []
    for level, values in enumerate(features):
        pixels = values.shape[2] * values.shape[3]
        numbers = random_bits(keys, POSITIONS + level, pixels)
        found.append(numbers.sort(dim=1, stable=True).indices[:, :count])
    return found


def at_positions(features: Sequence[Tensor], where: Sequence[Tensor]) -> list[Tensor]:
    """Return the features (N, C, h, w) of each level at positions (N, P), as (N, P, C)."""
    return [
        values.flatten(2).gather(2, index[:, None].expand(-1, values.shape[1], -1)).transpose(1, 2)
        for values, index in zip(features, where, strict=True)
    ]


def contrastive_losses(queries: Sequence[Tensor], keys: Sequence[Tensor], temperature: float) -> Tensor:
    """Return the loss of each image (N,). `queries` and `keys` have unit vectors (N, P, C) for each level."""
    losses = []
    for q, k in zip(queries, keys, strict=True):
        logits = q @ k.transpose(1, 2) / temperature  # (N, P, P)
        own = torch.arange(q.shape[1], device=q.device).expand(len(q), -1)
        losses.append(F.cross_entropy(logits.transpose(1, 2), own, reduction="none").mean(1))
    return torch.stack(losses).mean(0)
