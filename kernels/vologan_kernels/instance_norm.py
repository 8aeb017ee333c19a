"""Instance normalisation followed by an activation.

    y = f(γ · (x − μ) / sqrt(σ² + ε) + β)

with μ and σ² the mean and the biased variance of each plane, that is of the H·W values of one channel of one sample
(Ulyanov et al., arXiv 1607.08022). Samples never interact, so a batch gives exactly what its samples give alone.

It is computed as the group norm with one channel a group. `torch.nn.functional.instance_norm` is the same mathematics,
but on the CPU it returns wrong gradients for one sample with a channels_last upstream gradient (torch 2.13). Statistics
are float32 (float64 for float64 input) whatever the input's dtype.

A plane of one value has σ² = 0 and gives f(β): such a layer carries no signal. That is defined here, not an error.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vologan_kernels.precision import to_accumulator

ACTIVATIONS: dict[str, Callable[[Tensor, float | Tensor], Tensor]] = {
    "identity": lambda y, slope: y,
    "relu": lambda y, slope: F.relu(y),
    "leaky_relu": lambda y, slope: F.leaky_relu(y, slope),  # type: ignore[arg-type]
    "prelu": lambda y, slope: F.prelu(y, slope.to(y.dtype)),  # type: ignore[union-attr]
    "elu": lambda y, slope: F.elu(y),
    "gelu": lambda y, slope: F.gelu(y),
}
"""Name → f(y, negative_slope). Only leaky_relu (a number) and prelu (a tensor of C) use the slope."""


def instance_norm_act(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    eps: float = 1e-5,
    activation: str = "identity",
    negative_slope: float | Tensor = 0.01,
) -> Tensor:
    """Instance norm over the last two dimensions of x (N, C, H, W), then the activation.

    `weight` (γ) and `bias` (β) have shape (C,); None stands for 1 and 0. `negative_slope` is a number for leaky_relu
    and a (C,) tensor for prelu. Returns x's shape, dtype and memory format. Raises ValueError for an input that is
    not 4-D floating point, for parameters that are not (C,), and for an unknown activation.
    """
    _check(x, weight, bias, activation, negative_slope)
    work = to_accumulator(x)
    gamma, beta = (None if p is None else p.to(work.dtype) for p in (weight, bias))
    y = torch.group_norm(work, x.shape[1], gamma, beta, eps)
    return ACTIVATIONS[activation](y, negative_slope).to(x.dtype)


class InstanceNormAct2d(nn.Module):
    """`nn.InstanceNorm2d` and the activation after it, with InstanceNorm2d's parameter names.

    `prelu` adds a parameter `slope` (C,), initially `negative_slope`.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        affine: bool = False,
        activation: str = "identity",
        negative_slope: float = 0.01,
    ) -> None:
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.activation = activation
        self.weight = nn.Parameter(torch.ones(num_features)) if affine else None
        self.bias = nn.Parameter(torch.zeros(num_features)) if affine else None
        self.slope = nn.Parameter(torch.full((num_features,), negative_slope)) if activation == "prelu" else None
        self.negative_slope = negative_slope

    def forward(self, x: Tensor) -> Tensor:
        slope = self.negative_slope if self.slope is None else self.slope
        return instance_norm_act(
            x, self.weight, self.bias, eps=self.eps, activation=self.activation, negative_slope=slope
        )

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}, affine={self.weight is not None}, activation={self.activation}"


def _check(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, activation: str, negative_slope: float | Tensor
) -> None:
    if x.dim() != 4 or not x.is_floating_point():
        raise ValueError(
            f"instance_norm_act: x must be a floating-point (N, C, H, W) tensor, found {x.dtype} {tuple(x.shape)}"
        )
    slope = negative_slope if isinstance(negative_slope, Tensor) else None
    for name, parameter in (("weight", weight), ("bias", bias), ("negative_slope", slope)):
        if parameter is not None and parameter.shape != x.shape[1:2]:
            raise ValueError(
                f"instance_norm_act: {name} must have shape ({x.shape[1]},), found {tuple(parameter.shape)}"
            )
    if activation not in ACTIVATIONS:
        raise ValueError(f"instance_norm_act: activation must be one of {', '.join(ACTIVATIONS)}, found {activation!r}")
    if (activation == "prelu") != (slope is not None):
        raise ValueError("instance_norm_act: prelu takes negative_slope as a (C,) tensor, the others as a number")
