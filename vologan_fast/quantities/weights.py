"""The weights of a network: their histogram, the scales γ of its norms, and the spectral norms σ of its layers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from vologan_kernels import InstanceNormAct2d

from vologan_fast.quantities.histograms import Histogram, histogram

_NORMS = (InstanceNormAct2d, nn.BatchNorm2d, nn.InstanceNorm2d, nn.GroupNorm, nn.LayerNorm)
_LAYERS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
_BINS = 61
_ITERATIONS = 30


@dataclass(frozen=True)
class Scales:
    """The scales γ of one norm."""

    layer: str
    low: float
    median: float
    high: float


@dataclass(frozen=True)
class Spectral:
    """The spectral norm σ of one layer: the largest singular value of its weight as a matrix (out, in · kh · kw)."""

    layer: str
    sigma: float
    normalised: bool
    """Whether the layer divides its weight by σ (spectral normalisation)."""


@dataclass(frozen=True)
class Weights:
    """The weights of one network."""

    histogram: Histogram
    """Of the weights of all convolutions and linear layers, from −a to a, where a is the largest absolute value."""
    gammas: tuple[Scales, ...]
    spectra: tuple[Spectral, ...]


@torch.no_grad()
def weights_of(network: nn.Module) -> Weights:
    """Return the weights of a network, layer by layer in the order of its modules. Nothing in it changes."""
    layers = [(name, module) for name, module in network.named_modules() if isinstance(module, _LAYERS)]
    found = [(name, *_weight(module), isinstance(module, nn.ConvTranspose2d)) for name, module in layers]
    largest = max((float(weight.abs().max()) for _, weight, _, _ in found if weight.numel()), default=0.0) or 1.0
    whole = histogram(np.empty(0), -largest, largest, _BINS)
    for _, weight, _, _ in found:
        whole += histogram(weight.float().cpu().numpy(), -largest, largest, _BINS)
    return Weights(
        whole,
        tuple(_scales(name, module.weight) for name, module in network.named_modules() if _has_scales(module)),
        tuple(
            Spectral(name, spectral_norm_of(weight.transpose(0, 1) if turned else weight), normalised)
            for name, weight, normalised, turned in found
        ),
    )


def _weight(module: nn.Module) -> tuple[Tensor, bool]:
    """Return the weight that is learnt, and whether spectral normalisation divides it."""
    if parametrize.is_parametrized(module, "weight"):
        return module.parametrizations.weight.original.detach(), True  # type: ignore[union-attr, operator]
    return module.weight.detach(), False  # type: ignore[operator]


def _has_scales(module: nn.Module) -> bool:
    return isinstance(module, _NORMS) and isinstance(module.weight, Tensor)


def _scales(name: str, gamma: Tensor) -> Scales:
    values = gamma.detach().float().flatten()
    return Scales(name, float(values.min()), float(values.median()), float(values.max()))


def spectral_norm_of(weight: Tensor) -> float:
    """Return the largest singular value of a weight (out, …) as a matrix, by 30 power iterations from a fixed start.

    The result is never too large, and has about three right digits. Raises nothing; 0 for a weight of zeros.
    """
    matrix = weight.detach().float().flatten(1)
    # The start is the row with the largest norm: never orthogonal to all that the matrix does.
    v = matrix[matrix.norm(dim=1).argmax()]
    for _ in range(_ITERATIONS):
        v = v / v.norm().clamp_min(1e-30)
        v = matrix.T @ (matrix @ v)
    v = v / v.norm().clamp_min(1e-30)
    return float((matrix @ v).norm())
