"""Spectral normalisation that iterates once per training step.

A weight W, seen as a matrix (out, in·kh·kw), is divided by σ = uᵀ W v, an estimate of its largest singular value by
power iteration (Miyato et al., arXiv 1802.05957). `torch.nn.utils.parametrizations.spectral_norm` iterates at every
forward in training mode; a CycleGAN step runs each generator three times, and those passes must see one weight. Here
`spectral_norm_step` makes one iteration for every layer of a model, and forwards leave u and v alone.

The state dict is torch's: `….parametrizations.weight.original`, `….parametrizations.weight.0._u` and `._v`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

_EPS = 1e-12
_INITIAL_ITERATIONS = 15  # as torch's: a random u, v would start training with a σ far too small


def spectral_norm(module: nn.Module) -> nn.Module:
    """Divide `module.weight` by its spectral norm, in place; returns the module."""
    parametrize.register_parametrization(module, "weight", _SpectralNorm(module.weight.detach()))  # type: ignore[operator]
    return module


@torch.no_grad()
def spectral_norm_step(model: nn.Module) -> None:
    """One power iteration for every normalised layer of `model`: call it once a training step, before the forwards."""
    for module in model.modules():
        if parametrize.is_parametrized(module, "weight"):
            parametrization = module.get_submodule("parametrizations.weight")
            normalization = parametrization.get_submodule("0")
            if isinstance(normalization, _SpectralNorm):
                normalization.iterate(parametrization.get_parameter("original"))


class _SpectralNorm(nn.Module):
    _u: Tensor
    _v: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        matrix = weight.flatten(1)
        self.register_buffer("_u", F.normalize(matrix.new_empty(matrix.shape[0]).normal_(), dim=0, eps=_EPS))
        self.register_buffer("_v", F.normalize(matrix.new_empty(matrix.shape[1]).normal_(), dim=0, eps=_EPS))
        with torch.no_grad():
            for _ in range(_INITIAL_ITERATIONS):
                self.iterate(weight)

    def iterate(self, weight: Tensor) -> None:
        matrix = weight.flatten(1)
        self._u.copy_(F.normalize(torch.mv(matrix, self._v), dim=0, eps=_EPS))
        self._v.copy_(F.normalize(torch.mv(matrix.t(), self._u), dim=0, eps=_EPS))

    def forward(self, weight: Tensor) -> Tensor:
        # Clones: a later iteration writes u and v in place, and a graph that saved them may still be alive.
        u, v = self._u.clone(), self._v.clone()
        with torch.autocast(weight.device.type, enabled=False):  # σ in bfloat16 would jitter by 0.4 % a step
            return weight / torch.dot(u, torch.mv(weight.flatten(1), v))
