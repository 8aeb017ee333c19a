"""Spectral normalisation of modules: the functions that users call, and the parametrization of a weight."""

from __future__ import annotations

import functools
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from vologan_kernels.dispatch import check_implementation
from vologan_kernels.spectral_norm.operation import Normalise
from vologan_kernels.spectral_norm.reference import EPS, divisor
from vologan_kernels.spectral_norm.reference import iterate as iterate_plainly

_INITIAL_ITERATIONS = 15  # as torch has: with random u and v, training would start with a σ far too small
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def spectral_norm(module: nn.Module) -> nn.Module:
    """Divide `module.weight` by its spectral norm, in place. Returns the module.

    It is for linear layers and convolutions, including transposed ones. The rows of the matrix are the output channels,
    as in torch. The forward does not iterate: `spectral_norm_step` does. Without it a training warns, once a process,
    when forwards see the weight change for the second time. A model under torch.compile is not watched.

    A tensor that is assigned to `module.weight` becomes the weight that is divided, as in torch.

    Raises ValueError for a module without a weight of at least two dimensions, or with a weight that has a
    parametrization already.
    """
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.dim() < 2:
        found = tuple(weight.shape) if isinstance(weight, Tensor) else type(weight).__name__
        raise ValueError(f"spectral_norm: module.weight must have at least 2 dimensions, found {found}")
    if parametrize.is_parametrized(module, "weight"):
        raise ValueError(f"spectral_norm: module.weight must have no parametrization yet, found one of {module}")
    dim = 1 if isinstance(module, _TRANSPOSED) else 0
    parametrize.register_parametrization(module, "weight", _SpectralNorm(weight.detach(), dim))
    return module


@contextmanager
def spectral_norm_step(
    *models: nn.Module, dtype: torch.dtype | None = None, iterate: bool = True, impl: str = "auto"
) -> Iterator[None]:
    """A training step of `models`: one power iteration for each normalised layer, then one Ŵ for all its forwards.

    On entry, all layers iterate and are normalised together. Inside, `layer.weight` is that Ŵ, in `dtype`; None stands
    for the weight's own. Under autocast to bfloat16, `dtype=torch.bfloat16` saves the cast of every forward. Any number
    of forwards may be followed by any number of backwards, inside or after the step. If a weight is frozen
    (`requires_grad` is False) when a forward runs, the forward gets a detached Ŵ, and no gradient of it is computed.

    Layers in eval mode do not iterate: their own u and v normalise them. With `iterate=False` this holds for all
    layers. If a weight changes inside, for example by an optimiser, Ŵ shows it from the next entry on. `impl` is as in
    `instance_norm_act`. Raises ValueError for a `dtype` that is not floating-point, or an `impl` that cannot run.
    """
    if dtype is not None and not dtype.is_floating_point:
        raise ValueError(f"spectral_norm_step: dtype must be a floating-point type, found {dtype}")
    layers = _normalised_layers(models)
    before = [layer._prepared for layer in layers]
    try:
        for group, iterates in _groups(layers, lambda layer: iterate and layer.training):
            weights = [layers[layer] for layer in group]
            check_implementation("spectral_norm_step", impl, weights[0])
            with torch.autocast(weights[0].device.type, enabled=False):
                prepared = Normalise.apply(
                    [layer.dim for layer in group],
                    [layer._u for layer in group],
                    [layer._v for layer in group],
                    dtype or weights[0].dtype,
                    iterates,
                    impl,
                    *weights,
                )
            for layer, weight, normalised in zip(group, weights, prepared, strict=True):
                layer._prepared = weight, normalised
                if iterates:
                    layer._last_seen = None
        yield
    finally:
        for layer, was in zip(layers, before, strict=True):
            layer._prepared = was


@torch.no_grad()
def power_iteration(*models: nn.Module, impl: str = "auto") -> None:
    """One power iteration for every normalised layer of `models`, in training and in eval mode.

    It serves weights that change without a training step, such as moving averages. `impl` is as in
    `instance_norm_act`.
    """
    layers = _normalised_layers(models)
    for group, _ in _groups(layers, lambda layer: True):
        weights = [layers[layer].transpose(0, layer.dim) for layer in group]
        check_implementation("power_iteration", impl, weights[0])
        with torch.autocast(weights[0].device.type, enabled=False):
            torch.ops.vologan_kernels.spectral_iterate(
                weights, [layer._u for layer in group], [layer._v for layer in group], impl
            )
        for layer in group:
            layer._last_seen = None


def _normalised_layers(models: Sequence[nn.Module]) -> dict[_SpectralNorm, Tensor]:
    """The normalisations of `models` with their weights, each of them once."""
    return {
        module[0]: module.original
        for model in models
        for module in model.modules()
        if isinstance(module, parametrize.ParametrizationList) and isinstance(module[0], _SpectralNorm)
    }


def _groups(
    layers: dict[_SpectralNorm, Tensor], flag: Callable[[_SpectralNorm], bool]
) -> Iterator[tuple[list[_SpectralNorm], bool]]:
    """Groups of layers that share a launch, since their device, dtype and `flag` are the same; and that flag."""
    groups: dict[tuple[torch.device, torch.dtype, bool], list[_SpectralNorm]] = {}
    for layer, weight in layers.items():
        groups.setdefault((weight.device, weight.dtype, flag(layer)), []).append(layer)
    for (_, _, value), group in groups.items():
        yield group, value


class _Seen(NamedTuple):
    """A weight as a forward of a training last saw it. It is forgotten when the layer iterates."""

    weight: weakref.ref[Tensor]
    version: int  # torch's count of writes into the weight, which the host knows
    changes: int  # that forwards have seen since the last iteration


class _SpectralNorm(nn.Module):
    """The parametrization of one weight: Ŵ from W. `dim` is the dimension of the weight that counts rows."""

    _u: Tensor
    _v: Tensor

    def __init__(self, weight: Tensor, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self._prepared: tuple[Tensor, Tensor] | None = None  # inside spectral_norm_step: W and its Ŵ
        self._last_seen: _Seen | None = None
        matrix = weight.transpose(0, dim).flatten(1)
        self.register_buffer("_u", F.normalize(matrix.new_empty(matrix.shape[0]).normal_(), dim=0, eps=EPS))
        self.register_buffer("_v", F.normalize(matrix.new_empty(matrix.shape[1]).normal_(), dim=0, eps=EPS))
        with torch.no_grad():
            for _ in range(_INITIAL_ITERATIONS):
                iterate_plainly([matrix], [self._u], [self._v])

    def forward(self, weight: Tensor) -> Tensor:
        if self._prepared is not None and self._prepared[0] is weight:
            normalised = self._prepared[1]
            if not weight.requires_grad:
                return normalised.detach()
            if normalised.requires_grad or not torch.is_grad_enabled():
                return normalised
            # The weight was frozen when the step began, and no longer is. No graph leads from Ŵ to it.
            return self._divided(weight).to(normalised.dtype)
        trains = self.training and weight.requires_grad and torch.is_grad_enabled()
        if trains and not torch.compiler.is_compiling() and not weight.is_inference():
            self._watch(weight)
        return self._divided(weight)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """The W that is kept when a weight is assigned to the layer: the assigned values themselves, as in torch."""
        return weight

    def _watch(self, weight: Tensor) -> None:
        """Warn if forwards of a training see the weight change, and no iteration follows.

        One change is no reason: a forward may come between the optimiser and the next `spectral_norm_step`.
        """
        seen, changes = self._last_seen, 0
        if seen is not None and seen.weight() is weight:
            if seen.version == weight._version:
                return
            changes = seen.changes + 1
        self._last_seen = _Seen(weakref.ref(weight), weight._version, changes)
        if changes == 2:
            _warn_that_sigma_is_stale()

    def _divided(self, weight: Tensor) -> Tensor:
        # Clones: a later iteration writes u and v in place, and a graph that saved them may still be alive.
        return (weight / divisor(weight.transpose(0, self.dim), self._u.clone(), self._v.clone())).to(weight.dtype)

    def __getstate__(self) -> dict[str, Any]:
        # A copy made in the middle of a step is not in that step, and its weight is another one.
        return {**self.__dict__, "_prepared": None, "_last_seen": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({"_last_seen": None, **state})  # pickles of older versions do not have it


@functools.cache  # once a process
def _warn_that_sigma_is_stale() -> None:
    warnings.warn(
        "spectral_norm: the weight of a layer in training has changed twice, and no power iteration followed, so it is "
        "divided by an old σ. Unlike torch's, this spectral norm does not iterate in the forward. Write around each "
        "training step:\n"
        "    from vologan_kernels import spectral_norm_step\n"
        "    with spectral_norm_step(model):  # its forwards and backwards",
        stacklevel=2,
    )
