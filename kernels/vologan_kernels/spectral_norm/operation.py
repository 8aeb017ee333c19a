"""Spectral normalisation as operations of torch.library, with its gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vologan_kernels.dispatch import implementation
from vologan_kernels.precision import accumulator_of
from vologan_kernels.spectral_norm import reference
from vologan_kernels.spectral_norm.memory import padded, starts, vectors_size, view

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
    implementation(_NAME, impl, weights[0], reference.iterate, lambda: _kernels().iterate)(weights, us, vs)


def _forward(
    weights: list[Tensor], us: list[Tensor], vs: list[Tensor], dtype: torch.dtype, iterate: bool, impl: str
) -> tuple[Tensor, Tensor, Tensor]:
    run = implementation(_NAME, impl, weights[0], reference.forward, lambda: _kernels().forward)
    return run(weights, us, vs, dtype=dtype, iterate=iterate)


def _backward(grads: list[Tensor], layers: list[int], normalised: Tensor, *arguments: Any) -> Tensor:
    *arguments, impl = arguments  # type: ignore[assignment]
    run = implementation(_NAME, impl, normalised, reference.backward, lambda: _kernels().backward)
    return run(grads, layers, normalised, *arguments)


def _kernels() -> Any:
    from vologan_kernels.spectral_norm import kernels

    return kernels


def _fake_forward(
    weights: list[Tensor], us: list[Tensor], vs: list[Tensor], dtype: torch.dtype, iterate: bool, impl: str
) -> tuple[Tensor, Tensor, Tensor]:
    accumulator = accumulator_of(weights[0])
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


class _Made(NamedTuple):
    """The results of `reference.forward`."""

    normalised: Tensor
    vectors: Tensor
    sigmas: Tensor


class Normalise(torch.autograd.Function):
    """All Ŵ of weights of one device and dtype, as a function with a gradient.

    The first backward frees saved tensors. But one step may run several backwards through the same Ŵ, for several
    losses or models. So the tensors that they need are attributes of the context. Only a second derivative needs the
    weights themselves, which are saved as usual.
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
        made = _Made(*torch.ops.vologan_kernels.spectral_normalize(matrices, us, vs, dtype, iterate, impl))
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*weights)
        ctx.made, ctx.dims, ctx.matrices, ctx.impl = made, dims, matrices, impl
        places = starts([padded(matrix) for matrix in matrices])
        outputs = tuple(
            view(made.normalised, matrix, place).transpose(0, dim)
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
"""The number of arguments of `Normalise` before the weights."""


def _gradients(ctx: Any, grads: dict[int, Tensor]) -> list[Tensor]:
    """∂L/∂W of the matrices whose numbers are the keys of `grads`."""
    layers, matrices = list(grads), ctx.matrices
    memory = torch.ops.vologan_kernels.spectral_normalize_backward(
        list(grads.values()), layers, *ctx.made, matrices, ctx.impl
    )
    places = starts([padded(matrices[i]) for i in layers])
    return [view(memory, matrices[i], place) for i, place in zip(layers, places, strict=False)]


def _differentiable_gradients(ctx: Any, grads: dict[int, Tensor]) -> list[Tensor]:
    """The same for create_graph=True."""
    sizes = [size for matrix in ctx.matrices for size in (matrix.shape[0], matrix.shape[1:].numel())]
    vectors, weights = ctx.made.vectors.split(sizes), ctx.saved_tensors
    return [
        reference.gradient(grad, weights[i].transpose(0, ctx.dims[i]), vectors[2 * i], vectors[2 * i + 1])
        for i, grad in grads.items()
    ]
