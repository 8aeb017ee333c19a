"""Adversarial losses over any number of discriminator outputs.

With z the logits of one output, averaged over all its elements and summed over outputs:

| kind  | real                | fake                | generator           |
|-------|---------------------|---------------------|---------------------|
| mse   | (z − 1)²            | z²                  | (z − 1)²            |
| bce   | softplus(−z)        | softplus(z)         | softplus(−z)        |
| hinge | max(0, 1 − z)       | max(0, 1 + z)       | −z                  |

mse: LSGAN (arXiv 1611.04076); bce: the non-saturating loss of Goodfellow et al. (arXiv 1406.2661) in its stable
form; hinge: Lim and Ye (arXiv 1705.02894).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from vologan_kernels.precision import to_accumulator

Role = Literal["real", "fake", "generator"]

_LOSSES: dict[str, dict[str, Callable[[Tensor], Tensor]]] = {
    "mse": {
        "real": lambda z: (z - 1).square(),
        "fake": torch.square,
        "generator": lambda z: (z - 1).square(),
    },
    "bce": {
        "real": lambda z: F.softplus(-z),
        "fake": F.softplus,
        "generator": lambda z: F.softplus(-z),
    },
    "hinge": {
        "real": lambda z: F.relu(1 - z),
        "fake": lambda z: F.relu(1 + z),
        "generator": torch.neg,
    },
}


def adversarial_loss(logits: Sequence[Tensor], role: Role, kind: str = "mse") -> Tensor:
    """The table's entry for (`kind`, `role`) as a scalar, float32 (float64 for float64 logits).

    `logits` are tensors of any shapes, one a discriminator output. Raises ValueError for an unknown kind or role, or
    no logits.
    """
    if kind not in _LOSSES:
        raise ValueError(f"adversarial_loss: kind must be one of {', '.join(_LOSSES)}, found {kind!r}")
    if role not in _LOSSES[kind]:
        raise ValueError(f"adversarial_loss: role must be one of {', '.join(_LOSSES[kind])}, found {role!r}")
    if not logits:
        raise ValueError("adversarial_loss: expected at least one discriminator output, found none")
    function = _LOSSES[kind][role]
    return torch.stack([function(to_accumulator(z)).mean() for z in logits]).sum()
