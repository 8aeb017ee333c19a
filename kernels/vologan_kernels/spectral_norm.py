"""Spectral normalisation of whole models: one power iteration a training step, in three launches for all layers.

A weight W, seen as a matrix (out, in·kh·kw), is divided by σ, an estimate of its largest singular value (Miyato et al.,
arXiv 1802.05957). Vectors u and v are kept from step to step. An iteration, and what it gives:

    t = W v    u = t / max(‖t‖, ε)    s = Wᵀu    v = s / max(‖s‖, ε)        σ = uᵀW v = s · v        Ŵ = W / σ

u and v count as constants, so that with G = ∂L/∂Ŵ

    ∂L/∂W = (G − ⟨G, Ŵ⟩ u vᵀ) / σ

`torch.nn.utils.parametrizations.spectral_norm` iterates at every forward in training mode, layer by layer. A CycleGAN
step runs each generator three times, and those passes must see one weight. `spectral_norm_step` iterates once, for all
layers of its models together, and gives every forward inside it the same Ŵ: gradients of all passes meet there, and one
backward takes them to the weights in two launches. Outside of it a forward divides by σ for itself and leaves u and v
alone. The state dict is torch's: `….parametrizations.weight.original`, `….parametrizations.weight.0._u` and `._v`.

Ŵ is written in the dtype that the layers compute in: the division is the cast that mixed precision makes anyway. So it
is not moved into the ε of an instance norm that follows, IN(x / σ; ε) = IN(x; σ²ε): that would save no pass.

Sums, σ, and the u and v of a graph are float32 (float64 for float64), also where the weights, and the u and v that are
kept, are bfloat16 or float16. A weight of zeros has σ = 0, for which torch gives NaN. Here such a σ counts as 1, and u
and v stay, so that a layer that starts at zero can learn.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from vologan_kernels.dispatch import check_implementation, implementation
from vologan_kernels.pointer_table import is_dense
from vologan_kernels.precision import to_accumulator

EPS = 1e-12
_INITIAL_ITERATIONS = 15  # as torch's: a random u, v would start training with a σ far too small
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)

# ---- where matrices lie in memory -----------------------------------------------------------------------------------

ALIGNMENT = 64
"""Elements to a multiple of which a weight is padded in the memory that all share: at least 128 bytes of bfloat16."""


class Layout(NamedTuple):
    """A matrix in memory. Column j, in the order in which they lie, is o = j // inner and i = j % inner:

    element (r, j) is at r · stride_row + o · stride_outer + i · stride_inner, and belongs to v[o · outer + i · step].
    """

    rows: int
    columns: int
    inner: int
    stride_row: int
    stride_outer: int
    stride_inner: int
    outer: int
    step: int


def strides_of(weight: Tensor) -> tuple[int, ...]:
    """In which Ŵ lies: the weight's own, or contiguous ones where a `Layout` cannot say what the weight's are."""
    return _strides(tuple(weight.shape), weight.stride())


@functools.lru_cache(maxsize=1024)
def _strides(shape: tuple[int, ...], stride: tuple[int, ...]) -> tuple[int, ...]:
    kernel = [(size, step) for size, step in zip(shape[2:], stride[2:], strict=True) if size > 1]
    follow = all(outer == size * inner for (_, outer), (size, inner) in itertools.pairwise(kernel))
    if follow and is_dense(shape, stride):
        return stride
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


@functools.lru_cache(maxsize=1024)
def layout_of(shape: tuple[int, ...], stride: tuple[int, ...]) -> Layout:
    """Of a matrix (out, in, *kernel) with strides of `strides_of`."""
    rows, channels, positions = *shape[:2], math.prod(shape[2:])
    stride_row, stride_channel = stride[:2]
    stride_position = next((step for size, step in zip(shape[:1:-1], stride[:1:-1], strict=True) if size > 1), 0)
    columns = channels * positions
    if positions == 1:
        return Layout(rows, columns, columns, stride_row, 0, stride_channel, 0, 1)
    if channels == 1 or stride_channel == positions * stride_position:
        return Layout(rows, columns, columns, stride_row, 0, stride_position, 0, 1)
    if stride_channel < stride_position:  # channels_last
        return Layout(rows, columns, channels, stride_row, stride_position, stride_channel, 1, positions)
    return Layout(rows, columns, positions, stride_row, stride_channel, stride_position, positions, 1)


def view(memory: Tensor, weight: Tensor, start: int) -> Tensor:
    """What lies in the flat `memory` from `start` on, as a weight."""
    return memory.as_strided(weight.shape, strides_of(weight), start)


def padded(weight: Tensor) -> int:
    return -(-weight.numel() // ALIGNMENT) * ALIGNMENT


def vectors_size(weight: Tensor) -> int:
    """Of u and v together."""
    return weight.shape[0] + weight.shape[1:].numel()


def starts(sizes: Sequence[int]) -> list[int]:
    """Where things of `sizes` start that lie one after the other, and, last, where they end."""
    return [0, *itertools.accumulate(sizes)]


# ---- reference: plain PyTorch, on any device ------------------------------------------------------------------------


def _iterate(matrix: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The next u and v, and Wᵀu."""
    t = torch.mv(matrix, v)
    u = torch.where(t.any(), F.normalize(t, dim=0, eps=EPS), u)
    s = torch.mv(matrix.t(), u)
    return u, torch.where(s.any(), F.normalize(s, dim=0, eps=EPS), v), s


def reference_iterate(weights: Sequence[Tensor], us: Sequence[Tensor], vs: Sequence[Tensor]) -> None:
    """One iteration for each weight (out, in, *kernel), which changes its u (out,) and v (in·kernel,)."""
    for weight, u, v in zip(weights, us, vs, strict=True):
        next_u, next_v, _ = _iterate(to_accumulator(weight).flatten(1), to_accumulator(u), to_accumulator(v))
        u.copy_(next_u)
        v.copy_(next_v)


def reference_forward(
    weights: Sequence[Tensor], us: Sequence[Tensor], vs: Sequence[Tensor], *, dtype: torch.dtype, iterate: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """All Ŵ in `dtype`, each padded with zeros to a multiple of `ALIGNMENT`; all (u, v) one after the other; all σ.

    `iterate`: after an iteration, which changes `us` and `vs`.
    """
    places = starts([padded(weight) for weight in weights])
    normalised = weights[0].new_empty(places[-1], dtype=dtype)
    vectors, sigmas = [], []
    for weight, kept_u, kept_v, place, end in zip(weights, us, vs, places, places[1:], strict=False):
        work, u, v = (to_accumulator(tensor) for tensor in (weight, kept_u, kept_v))
        if iterate:
            u, v, s = _iterate(work.flatten(1), u, v)
            sigma = torch.dot(s, v)
            kept_u.copy_(u)
            kept_v.copy_(v)
        else:
            sigma = torch.dot(u, torch.mv(work.flatten(1), v))
        sigma = _nonzero(sigma)
        _divide(work, sigma, view(normalised, weight, place))
        normalised[place + weight.numel() : end].zero_()
        vectors += [u, v]
        sigmas.append(sigma)
    return normalised, torch.cat(vectors), torch.stack(sigmas)


def reference_backward(
    grads: Sequence[Tensor],
    layers: Sequence[int],
    normalised: Tensor,
    vectors: Tensor,
    sigmas: Tensor,
    weights: Sequence[Tensor],
) -> Tensor:
    """∂L/∂W in the weights' dtype, padded as Ŵ is, of those `layers` whose ∂L/∂Ŵ are `grads`.

    The others are what `reference_forward` took and gave; of `weights` only shape and layout count.
    """
    places = starts([padded(weight) for weight in weights])
    of_vectors = starts([vectors_size(weight) for weight in weights])
    targets = starts([padded(weights[layer]) for layer in layers])
    gradients = weights[0].new_empty(targets[-1])
    for grad, layer, target, end in zip(grads, layers, targets, targets[1:], strict=False):
        weight = weights[layer]
        g, w = to_accumulator(grad), to_accumulator(view(normalised, weight, places[layer]))
        u, v = vectors[of_vectors[layer] : of_vectors[layer + 1]].split([weight.shape[0], weight.shape[1:].numel()])
        through = torch.addr(g.flatten(1), u * (g * w).sum(), v, alpha=-1).view(weight.shape)
        _divide(through, sigmas[layer], view(gradients, weight, target))
        gradients[target + weight.numel() : end].zero_()
    return gradients


def _divide(work: Tensor, sigma: Tensor, target: Tensor) -> None:
    if work.dtype == target.dtype:
        torch.div(work, sigma, out=target)
    else:
        target.copy_(work / sigma)


def _divisor(weight: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """σ, differentiable."""
    with torch.autocast(weight.device.type, enabled=False):  # σ in bfloat16 would jitter by 0.4 % a step
        work = to_accumulator(weight).flatten(1)
        return _nonzero(torch.dot(to_accumulator(u), torch.mv(work, to_accumulator(v))))


def _nonzero(sigma: Tensor) -> Tensor:
    return sigma + (sigma == 0)


def _gradient(grad: Tensor, weight: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """∂L/∂W, differentiable in G and W."""
    sigma = _divisor(weight, u, v)
    g, w = to_accumulator(grad), to_accumulator(weight)
    return ((g - (g * w).sum() / sigma * torch.outer(u, v).view(w.shape)) / sigma).to(weight.dtype)


# ---- operations, opaque to torch.compile ----------------------------------------------------------------------------

_NAME = "spectral_norm"
_library = torch.library.Library("vologan_kernels", "FRAGMENT")
_library.define("spectral_iterate(Tensor[] weights, Tensor(a!)[] us, Tensor(b!)[] vs, str impl) -> ()")
_library.define(
    "spectral_normalize(Tensor[] weights, Tensor(a!)[] us, Tensor(b!)[] vs, ScalarType dtype, bool iterate, str impl)"
    " -> (Tensor, Tensor, Tensor)"
)
_library.define(
    "spectral_normalize_backward(Tensor[] grads, int[] layers, Tensor normalised, Tensor vectors, Tensor sigmas, "
    "Tensor[] weights, str impl) -> Tensor"
)


def _iterate_op(weights: list[Tensor], us: list[Tensor], vs: list[Tensor], impl: str) -> None:
    implementation(_NAME, impl, weights[0], reference_iterate, lambda: _kernels().iterate)(weights, us, vs)


def _forward(
    weights: list[Tensor], us: list[Tensor], vs: list[Tensor], dtype: torch.dtype, iterate: bool, impl: str
) -> tuple[Tensor, Tensor, Tensor]:
    run = implementation(_NAME, impl, weights[0], reference_forward, lambda: _kernels().forward)
    return run(weights, us, vs, dtype=dtype, iterate=iterate)


def _backward(grads: list[Tensor], layers: list[int], normalised: Tensor, *arguments: Any) -> Tensor:
    *arguments, impl = arguments  # type: ignore[assignment]
    run = implementation(_NAME, impl, normalised, reference_backward, lambda: _kernels().backward)
    return run(grads, layers, normalised, *arguments)


def _kernels() -> Any:
    from vologan_kernels import spectral_norm_triton

    return spectral_norm_triton


def _fake_forward(
    weights: list[Tensor], us: list[Tensor], vs: list[Tensor], dtype: torch.dtype, iterate: bool, impl: str
) -> tuple[Tensor, Tensor, Tensor]:
    accumulator = torch.float64 if weights[0].dtype == torch.float64 else torch.float32
    return (
        weights[0].new_empty(sum(map(padded, weights)), dtype=dtype),
        weights[0].new_empty(sum(map(vectors_size, weights)), dtype=accumulator),
        weights[0].new_empty(len(weights), dtype=accumulator),
    )


def _fake_backward(grads: list[Tensor], layers: list[int], *arguments: Any) -> Tensor:
    *_, weights, _ = arguments
    return weights[0].new_empty(sum(padded(weights[layer]) for layer in layers))


_library.impl("spectral_iterate", _iterate_op, "CompositeExplicitAutograd")
_library.impl("spectral_normalize", _forward, "CompositeExplicitAutograd")
_library.impl("spectral_normalize_backward", _backward, "CompositeExplicitAutograd")
torch.library.register_fake("vologan_kernels::spectral_iterate", lambda *_: None, lib=_library)
torch.library.register_fake("vologan_kernels::spectral_normalize", _fake_forward, lib=_library)
torch.library.register_fake("vologan_kernels::spectral_normalize_backward", _fake_backward, lib=_library)


# ---- autograd -------------------------------------------------------------------------------------------------------


class _Normalise(torch.autograd.Function):
    """All Ŵ of weights of one device and dtype.

    What the backward needs is on the context, not among the saved tensors: those are freed by the first backward, and
    one step may run several, of several losses or models, through the same Ŵ. The weights themselves, which only a
    second derivative needs, are saved as usual.
    """

    @staticmethod
    def forward(
        ctx: Any,
        dims: Sequence[int],
        us: Sequence[Tensor],
        vs: Sequence[Tensor],
        dtype: torch.dtype,
        iterate: bool,
        impl: str,
        *weights: Tensor,
    ) -> tuple[Tensor, ...]:
        matrices = [weight.transpose(0, dim) for weight, dim in zip(weights, dims, strict=True)]
        made = torch.ops.vologan_kernels.spectral_normalize(matrices, us, vs, dtype, iterate, impl)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*weights)
        ctx.made, ctx.dims, ctx.matrices, ctx.impl = made, dims, matrices, impl
        places = starts([padded(matrix) for matrix in matrices])
        outputs = tuple(
            view(made[0], matrix, place).transpose(0, dim)
            for matrix, place, dim in zip(matrices, places, dims, strict=False)
        )
        needed = ctx.needs_input_grad[_ARGUMENTS:]
        ctx.mark_non_differentiable(*(output for output, need in zip(outputs, needed, strict=True) if not need))
        return outputs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        needed = ctx.needs_input_grad[_ARGUMENTS:]
        turned = {
            i: grad.transpose(0, ctx.dims[i])
            for i, (grad, need) in enumerate(zip(grads, needed, strict=True))
            if grad is not None and need
        }
        found: list[Tensor | None] = [None] * len(grads)
        if turned:
            gradients = _differentiable_gradients if torch.is_grad_enabled() else _gradients
            for i, gradient in zip(turned, gradients(ctx, turned), strict=True):
                found[i] = gradient.transpose(0, ctx.dims[i])
        return *[None] * _ARGUMENTS, *found


_ARGUMENTS = 6
"""Of `_Normalise`, before the weights."""


def _gradients(ctx: Any, grads: dict[int, Tensor]) -> list[Tensor]:
    layers, matrices = list(grads), ctx.matrices
    memory = torch.ops.vologan_kernels.spectral_normalize_backward(
        list(grads.values()), layers, *ctx.made, matrices, ctx.impl
    )
    places = starts([padded(matrices[i]) for i in layers])
    return [view(memory, matrices[i], place) for i, place in zip(layers, places, strict=False)]


def _differentiable_gradients(ctx: Any, grads: dict[int, Tensor]) -> list[Tensor]:
    """With create_graph=True."""
    sizes = [size for matrix in ctx.matrices for size in (matrix.shape[0], matrix.shape[1:].numel())]
    vectors, weights = ctx.made[1].split(sizes), ctx.saved_tensors
    return [
        _gradient(grad, weights[i].transpose(0, ctx.dims[i]), vectors[2 * i], vectors[2 * i + 1])
        for i, grad in grads.items()
    ]


# ---- what users call ------------------------------------------------------------------------------------------------


def spectral_norm(module: nn.Module) -> nn.Module:
    """Divide `module.weight` by its spectral norm, in place; returns the module.

    For linear layers and convolutions, transposed ones included: the rows of the matrix are the output channels, as in
    torch. Raises ValueError for a module without a weight of at least two dimensions, or one that has a
    parametrization already.
    """
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.dim() < 2:
        found = tuple(weight.shape) if isinstance(weight, Tensor) else type(weight).__name__
        raise ValueError(f"{_NAME}: module.weight must have at least 2 dimensions, found {found}")
    if parametrize.is_parametrized(module, "weight"):
        raise ValueError(f"{_NAME}: module.weight must have no parametrization yet, found one of {module}")
    dim = 1 if isinstance(module, _TRANSPOSED) else 0
    parametrize.register_parametrization(module, "weight", _SpectralNorm(weight.detach(), dim))
    return module


@contextmanager
def spectral_norm_step(
    *models: nn.Module, dtype: torch.dtype | None = None, iterate: bool = True, impl: str = "auto"
) -> Iterator[None]:
    """A training step of `models`: one power iteration for each normalised layer, then one Ŵ for all its forwards.

    On entry all layers iterate and are normalised together. Inside, `layer.weight` is that Ŵ, in `dtype` (None: in the
    weight's own; under autocast to bfloat16, torch.bfloat16 saves the cast of every forward). Any number of forwards
    may be followed by any number of backwards, inside or after. A forward that finds a weight frozen (`requires_grad`
    is False) gets Ŵ detached, and no gradient of it is computed.

    Layers in eval mode, and all with `iterate=False`, are normalised by the u and v that they have. A weight that
    changes inside, by an optimiser for example, shows in Ŵ from the next entry on. `impl` as in `instance_norm_act`.
    Raises ValueError for a `dtype` that is not floating-point, or an `impl` that cannot run.
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
                prepared = _Normalise.apply(
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
        yield
    finally:
        for layer, was in zip(layers, before, strict=True):
            layer._prepared = was


@torch.no_grad()
def power_iteration(*models: nn.Module, impl: str = "auto") -> None:
    """One power iteration for every normalised layer of `models`, whatever its mode, and nothing else.

    For weights that change without a training step, such as moving averages. `impl` as in `instance_norm_act`.
    """
    layers = _normalised_layers(models)
    for group, _ in _groups(layers, lambda layer: True):
        weights = [layers[layer].transpose(0, layer.dim) for layer in group]
        check_implementation("power_iteration", impl, weights[0])
        with torch.autocast(weights[0].device.type, enabled=False):
            torch.ops.vologan_kernels.spectral_iterate(
                weights, [layer._u for layer in group], [layer._v for layer in group], impl
            )


def _normalised_layers(models: Sequence[nn.Module]) -> dict[_SpectralNorm, Tensor]:
    """The normalisations of `models`, each once, with their weights."""
    return {
        module[0]: module.original
        for model in models
        for module in model.modules()
        if isinstance(module, parametrize.ParametrizationList) and isinstance(module[0], _SpectralNorm)
    }


def _groups(
    layers: dict[_SpectralNorm, Tensor], flag: Callable[[_SpectralNorm], bool]
) -> Iterator[tuple[list[_SpectralNorm], bool]]:
    """Layers that one launch can do: of one device and dtype, and one value of `flag`, which comes with them."""
    groups: dict[tuple[torch.device, torch.dtype, bool], list[_SpectralNorm]] = {}
    for layer, weight in layers.items():
        groups.setdefault((weight.device, weight.dtype, flag(layer)), []).append(layer)
    for (_, _, value), group in groups.items():
        yield group, value


class _SpectralNorm(nn.Module):
    """Ŵ of W. `dim` is the weight's dimension that counts its rows."""

    _u: Tensor
    _v: Tensor

    def __init__(self, weight: Tensor, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self._prepared: tuple[Tensor, Tensor] | None = None  # in spectral_norm_step: W and its Ŵ
        matrix = weight.transpose(0, dim).flatten(1)
        self.register_buffer("_u", F.normalize(matrix.new_empty(matrix.shape[0]).normal_(), dim=0, eps=EPS))
        self.register_buffer("_v", F.normalize(matrix.new_empty(matrix.shape[1]).normal_(), dim=0, eps=EPS))
        with torch.no_grad():
            for _ in range(_INITIAL_ITERATIONS):
                reference_iterate([matrix], [self._u], [self._v])

    def forward(self, weight: Tensor) -> Tensor:
        if self._prepared is not None and self._prepared[0] is weight:
            normalised = self._prepared[1]
            if not weight.requires_grad:
                return normalised.detach()
            if normalised.requires_grad or not torch.is_grad_enabled():
                return normalised
            # Frozen when the step began, and no longer: no graph leads from Ŵ to the weight.
            return self._divided(weight).to(normalised.dtype)
        return self._divided(weight)

    def _divided(self, weight: Tensor) -> Tensor:
        # Clones: a later iteration writes u and v in place, and a graph that saved them may still be alive.
        return (weight / _divisor(weight.transpose(0, self.dim), self._u.clone(), self._v.clone())).to(weight.dtype)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_prepared": None}  # a copy made in the middle of a step is not in that step
