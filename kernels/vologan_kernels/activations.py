"""The activations that the kernels fuse, in one table: name → function, derivative, inverse or none.

All three are plain PyTorch expressions of the pre-activation u (or, for the inverse, of y = f(u)). The derivative is
spelt out, not left to autograd: the Triton kernels (`instance_norm_triton.py`) state the same formulas, and a second
derivative comes from differentiating it. At a kink it takes torch's side: f'(0) = 0 for relu, the slope for leaky_relu
and prelu.

An inverse is given only where u comes back from a rounded y as exactly as y was stored. ELU and tanh have inverses on
paper, but where they saturate no digit of u is left in y.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

Slope = float | Tensor
"""The slope for u ≤ 0: a number for leaky_relu, a tensor that broadcasts against u for prelu; others ignore it."""

LEAST_INVERTIBLE_SLOPE = 2.0**-10
"""Below this, float16 outputs of leaky_relu become subnormal for ordinary u < 0 and lose digits."""


@dataclass(frozen=True)
class Activation:
    function: Callable[[Tensor, Slope], Tensor]
    derivative: Callable[[Tensor, Slope], Tensor]
    inverse: Callable[[Tensor, Slope], Tensor] | None = None


def _leaky(u: Tensor, slope: Slope) -> Tensor:
    return torch.where(u > 0, u, u * slope)


def _leaky_derivative(u: Tensor, slope: Slope) -> Tensor:
    return torch.where(u > 0, torch.ones_like(u), torch.ones_like(u) * slope)


def _silu_derivative(u: Tensor, slope: Slope) -> Tensor:
    sigmoid = torch.sigmoid(u)
    return sigmoid * (1 + u * (1 - sigmoid))


def _gelu_derivative(u: Tensor, slope: Slope) -> Tensor:
    """Φ(u) + u · φ(u), of the standard normal distribution."""
    return 0.5 * (1 + torch.erf(u * math.sqrt(0.5))) + u * torch.exp(-0.5 * u * u) / math.sqrt(2 * math.pi)


ACTIVATIONS: dict[str, Activation] = {
    "identity": Activation(lambda u, slope: u, lambda u, slope: torch.ones_like(u), lambda y, slope: y),
    "relu": Activation(lambda u, slope: F.relu(u), lambda u, slope: (u > 0).to(u.dtype)),
    "leaky_relu": Activation(_leaky, _leaky_derivative, lambda y, slope: torch.where(y > 0, y, y / slope)),
    "prelu": Activation(_leaky, _leaky_derivative),  # its slopes may be learnt to be 0
    "silu": Activation(lambda u, slope: F.silu(u), _silu_derivative),
    "gelu": Activation(lambda u, slope: F.gelu(u), _gelu_derivative),
    "elu": Activation(lambda u, slope: F.elu(u), lambda u, slope: torch.exp(u.clamp(max=0))),
    "tanh": Activation(lambda u, slope: torch.tanh(u), lambda u, slope: 1 - torch.tanh(u).square()),
}


def invertible(activation: str, negative_slope: float | Tensor) -> bool:
    """Whether the pre-activation comes back from the output: decided by static facts, never by values on a device."""
    if activation == "leaky_relu" and not isinstance(negative_slope, Tensor):
        return negative_slope >= LEAST_INVERTIBLE_SLOPE
    return ACTIVATIONS[activation].inverse is not None
