"""Gradient penalties, which keep a discriminator smooth.

D(x) is the sum of the means of the discriminator's outputs for the image x, and ∇D its gradient with respect to x.

    r1        ½ E ‖∇D(x)‖²         x: real images (Mescheder et al., arXiv 1801.04406)
    wgan-gp   E (‖∇D(x̂)‖ − 1)²     x̂ = α x + (1 − α) G, α uniform in [0, 1), x real, G a translation
                                   (Gulrajani et al., arXiv 1704.00028)

A penalty is minimised with respect to the weights, so it is differentiated twice. torch.compile cannot do this (torch
2.13), so the discriminators run uncompiled here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from vologan_fast.training.compilation import uncompiled
from vologan_fast.training.sample_random import INTERPOLATION, uniform


def gradient_penalty(
    kind: str, judge: Callable[[Tensor], Sequence[Tensor]], real: Tensor, fake: Tensor, keys: Tensor
) -> Tensor:
    """Return the mean penalty of a batch, without weight: a scalar with a graph.

    `kind` is "r1" or "wgan-gp". `judge` is the discriminator, from images (N, C, H, W) to outputs of any shape (N, …).
    `real` and `fake` are images of its domain. `keys` (N,) are the samples' keys, which determine α.
    """
    images = (real if kind == "r1" else _between(real, fake, keys)).detach().requires_grad_()
    # The fast kernels of attention have no second derivative.
    with uncompiled(), sdpa_kernel(SDPBackend.MATH):
        scores = [output.flatten(1).mean(1, dtype=_at_least_float32(output)) for output in judge(images)]
    (gradient,) = torch.autograd.grad(torch.stack(scores).sum(), images, create_graph=True)
    if kind == "r1":
        return 0.5 * gradient.square().sum((1, 2, 3)).mean()
    # vector_norm has the gradient 0 where the norm is 0. The root of a sum of squares would have NaN.
    return (torch.linalg.vector_norm(gradient, dim=(1, 2, 3)) - 1).square().mean()


def _between(real: Tensor, fake: Tensor, keys: Tensor) -> Tensor:
    share = uniform(keys, INTERPOLATION, 1).to(real.dtype).view(-1, 1, 1, 1)
    return share * real + (1 - share) * fake


def _at_least_float32(output: Tensor) -> torch.dtype:
    return torch.promote_types(output.dtype, torch.float32)
