"""The adversarial losses in plain PyTorch, on any device: the definition that the kernels are tested against."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from vologan_kernels.device import numbers
from vologan_kernels.layouts import is_dense
from vologan_kernels.precision import to_accumulator

Role = Literal["real", "fake", "generator"]
ROLES = ("real", "fake", "generator")
KINDS = ("lsgan", "bce", "hinge", "hinge_both", "wgan")


def _softplus(z: Tensor) -> Tensor:
    """log(1 + eᶻ) to all digits. torch's own threshold of 20 leaves out up to e⁻²⁰; e⁻⁴⁰ is below float64's digits."""
    return F.softplus(z, threshold=40)


def _through_relu(u: Tensor, scale: Tensor) -> Tensor:
    """`scale` where u is above 0 or NaN, else 0: the gradient of relu, in one pass."""
    through: Tensor = torch.ops.aten.threshold_backward(scale.expand_as(u), u, 0)
    return through


_LOSSES: dict[tuple[str, str], Callable[[Tensor], Tensor]] = {
    ("lsgan", "real"): lambda z: (z - 1).square(),
    ("lsgan", "fake"): torch.square,
    ("bce", "real"): lambda z: _softplus(-z),
    ("bce", "fake"): lambda z: _softplus(z),
    ("hinge", "real"): lambda z: F.relu(1 - z, inplace=True),
    ("hinge", "fake"): lambda z: F.relu(1 + z, inplace=True),
    ("hinge", "generator"): torch.neg,
    ("wgan", "real"): torch.neg,
    ("wgan", "fake"): lambda z: z,
}
_LOSSES |= {("hinge_both", role): _LOSSES["hinge", role] for role in ("real", "fake")}
_LOSSES |= {(kind, "generator"): _LOSSES[kind, "real"] for kind in ("lsgan", "bce", "hinge_both", "wgan")}

_GRADIENTS: dict[tuple[str, str], Callable[[Tensor, Tensor], Tensor]] = {
    ("lsgan", "real"): lambda z, scale: (z - 1).mul_(2).mul_(scale),
    ("lsgan", "fake"): lambda z, scale: (2 * z).mul_(scale),
    ("bce", "real"): lambda z, scale: (-z).sigmoid_().neg_().mul_(scale),
    ("bce", "fake"): lambda z, scale: z.sigmoid().mul_(scale),
    ("hinge", "real"): lambda z, scale: _through_relu(1 - z, scale).neg_(),
    ("hinge", "fake"): lambda z, scale: _through_relu(1 + z, scale),
    ("hinge", "generator"): lambda z, scale: (-scale).expand_as(z),
    ("wgan", "real"): lambda z, scale: (-scale).expand_as(z),
    ("wgan", "fake"): lambda z, scale: scale.expand_as(z),
}
"""The derivative of each loss, times `scale`, a tensor of no dimensions."""
_GRADIENTS |= {("hinge_both", role): _GRADIENTS["hinge", role] for role in ("real", "fake")}
_GRADIENTS |= {(kind, "generator"): _GRADIENTS[kind, "real"] for kind in ("lsgan", "bce", "hinge_both", "wgan")}


def elementwise_loss(z: Tensor, role: Role, kind: str) -> Tensor:
    """Return the loss of each element of z, in z's shape and dtype, as plain PyTorch with a graph.

    `role` and `kind` are as in `adversarial_loss`. It serves losses with a role that changes from pixel to pixel.
    """
    return _LOSSES[kind, role](z)


def forward(
    logits: Sequence[Tensor], roles: Sequence[int], weights: Sequence[float], kind: str
) -> tuple[Tensor, Tensor]:
    """The loss () and the mean of each output (K,), unweighted. `roles` are indices of `ROLES`."""
    means = []
    for z, role in zip(logits, roles, strict=True):
        means.append(_LOSSES[kind, ROLES[role]](to_accumulator(z)).sum() / max(z.numel(), 1))
    values = torch.stack(means)
    return (numbers(weights, values) * values).sum(), values


def backward(
    grad: Tensor, logits: Sequence[Tensor], roles: Sequence[int], weights: Sequence[float], kind: str
) -> list[Tensor]:
    """The gradient of each of the `logits`, in its dtype."""
    gradients = []
    for z, role, weight in zip(logits, roles, weights, strict=True):
        gradient = _GRADIENTS[kind, ROLES[role]](to_accumulator(z), grad * (weight / max(z.numel(), 1)))
        same = gradient.dtype == z.dtype and gradient.stride() == z.stride() and is_dense(z.shape, z.stride())
        gradients.append(gradient if same else torch.empty_like(z).copy_(gradient))
    return gradients
