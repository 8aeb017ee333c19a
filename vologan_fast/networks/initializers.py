"""Initial values of convolution weights.

"He-alpha" is the initialisation of He et al. (arXiv 1502.01852) with the slope a of the leaky ReLU in the gain. It is
uniform in ±sqrt(6 / ((1 + a²) · fan_in)), or normal with σ = sqrt(2 / ((1 + a²) · fan_in)), truncated at 2 σ.

The truncation leaves 0.8796 of the deviation. Keras' He normal and Glorot normal divide σ by this number, so that their
weights have the deviation of the formula. He-alpha normal does not, as published. Neither do the two initialisers
whose names end in `_uncorrected`. `glorot_normal_small` is not truncated, and has 0.02 times the deviation: torch's
`xavier_normal_` with this gain, as in the code of CUT.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import init

_TRUNCATED_STD = 0.87962566103423978
"""Deviation of a standard normal distribution that is cut at ±2: sqrt(1 − 4 φ(2) / (2 Φ(2) − 1))."""
_SMALL_GAIN = 0.02


@torch.no_grad()
def initialize(weight: Tensor, name: str, negative_slope: float = 0.0) -> Tensor:
    """Fill a convolution weight (out, in, kh, kw) in place, by an initialiser of `BlockConfig.initializer`.

    Returns the weight. `negative_slope` is used by the He-alpha initialisers only. Raises ValueError for another name.
    """
    fan_in = math.prod(weight.shape[1:])
    fan_out = weight.shape[0] * math.prod(weight.shape[2:])
    slope = negative_slope if name.startswith("he_alpha") else 0.0
    he_variance = 2.0 / ((1.0 + slope**2) * fan_in)
    glorot_variance = 2.0 / (fan_in + fan_out)
    match name:
        case "he_alpha_uniform" | "he_uniform":
            return _uniform(weight, he_variance)
        case "he_alpha_normal" | "he_normal_uncorrected":
            return _truncated_normal(weight, he_variance)
        case "he_normal":
            return _truncated_normal(weight, he_variance / _TRUNCATED_STD**2)
        case "glorot_uniform":
            return _uniform(weight, glorot_variance)
        case "glorot_normal":
            return _truncated_normal(weight, glorot_variance / _TRUNCATED_STD**2)
        case "glorot_normal_uncorrected":
            return _truncated_normal(weight, glorot_variance)
        case "glorot_normal_small":
            return init.normal_(weight, std=_SMALL_GAIN * math.sqrt(glorot_variance))
        case "normal":
            return init.normal_(weight, std=0.02)
        case "uniform":
            return init.uniform_(weight, -0.05, 0.05)
    raise ValueError(f"unknown initializer {name!r}")


def _uniform(weight: Tensor, variance: float) -> Tensor:
    limit = math.sqrt(3.0 * variance)
    return init.uniform_(weight, -limit, limit)


def _truncated_normal(weight: Tensor, variance: float) -> Tensor:
    std = math.sqrt(variance)
    return init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)
