"""The activations that the kernels fuse, in one table: name → function, gradient, and inverse or None.

All are plain PyTorch expressions of the pre-activation u; an inverse is an expression of y = f(u). The gradient is
f'(u) · ∂L/∂y. It is PyTorch's own kernel where there is one that autograd can differentiate once more. The Triton
kernels state the same formulas in `activations_triton.py`. At a kink the derivative takes torch's side: f'(0) is 0 for
relu, and the slope for leaky_relu and prelu.

An activation has an inverse here only if u can be computed back from a rounded y with as many digits as y has. In
mathematics, ELU and tanh have inverses too. But where they saturate, y holds no digits of u.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

Slope = float | Tensor
"""The slope for u ≤ 0. It is a number for leaky_relu, and for prelu a tensor that broadcasts against u. The other
activations ignore it."""

LEAST_INVERTIBLE_SLOPE = 2.0**-10
"""The smallest slope whose leaky_relu has an inverse. Below it, float16 outputs become subnormal for ordinary u < 0 and
lose digits."""


@dataclass(frozen=True)
class Activation:
    """One activation y = f(u)."""

    function: Callable[[Tensor, Slope], Tensor]
    """(u, slope) → y"""
    gradient: Callable[[Tensor, Tensor, Slope], Tensor]
    """(∂L/∂y, u, slope) → ∂L/∂u"""
    inverse: Callable[[Tensor, Slope], Tensor] | None = None
    """(y, slope) → u"""


def _prelu(u: Tensor, slope: Slope) -> Tensor:
    return torch.where(u > 0, u, u * slope)


def _prelu_gradient(grad: Tensor, u: Tensor, slope: Slope) -> Tensor:
    return torch.where(u > 0, grad, grad * slope)


def _silu_gradient(grad: Tensor, u: Tensor, _: Slope) -> Tensor:
    sigmoid = torch.sigmoid(u)
    return grad * sigmoid * (1 + u * (1 - sigmoid))


_aten = torch.ops.aten

ACTIVATIONS: dict[str, Activation] = {
    "identity": Activation(lambda u, _: u, lambda grad, u, _: grad, lambda y, _: y),
    "relu": Activation(lambda u, _: torch.relu(u), lambda grad, u, _: _aten.threshold_backward(grad, u, 0)),
    "leaky_relu": Activation(
        F.leaky_relu,  # type: ignore[arg-type]
        lambda grad, u, slope: _aten.leaky_relu_backward(grad, u, slope, False),
        lambda y, slope: F.leaky_relu(y, 1 / slope),  # type: ignore[arg-type]
    ),
    "prelu": Activation(_prelu, _prelu_gradient),  # no inverse, because its slopes may become 0 in training
    "silu": Activation(lambda u, _: F.silu(u), _silu_gradient),
    "gelu": Activation(lambda u, _: F.gelu(u), lambda grad, u, _: _aten.gelu_backward(grad, u)),
    "elu": Activation(lambda u, _: F.elu(u), lambda grad, u, _: _aten.elu_backward(grad, 1, 1, 1, False, u)),
    "tanh": Activation(lambda u, _: torch.tanh(u), lambda grad, u, _: _aten.tanh_backward(grad, torch.tanh(u))),
}


def invertible(activation: str, negative_slope: float | Tensor) -> bool:
    """Whether the pre-activation can be computed back from the output. No values on a device are read for the
    answer."""
    if activation == "leaky_relu" and not isinstance(negative_slope, Tensor):
        return negative_slope >= LEAST_INVERTIBLE_SLOPE
    return ACTIVATIONS[activation].inverse is not None
