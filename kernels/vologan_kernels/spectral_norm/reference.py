"""Spectral normalisation in plain PyTorch, on any device: the definition that the kernels are tested against."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from vologan_kernels.precision import to_accumulator
from vologan_kernels.spectral_norm.memory import padded, starts, vectors_size, view

EPS = 1e-12


def iterate(weights: Sequence[Tensor], us: Sequence[Tensor], vs: Sequence[Tensor]) -> None:
    """One iteration for each weight (out, in, *kernel). It changes the u (out,) and v (in·kernel,) of the weight."""
    _iterate([to_accumulator(weight) for weight in weights], us, vs)


def _iterate(
    weights: Sequence[Tensor], us: Sequence[Tensor], vs: Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Iterate and change `us` and `vs`. Returns all u, v and s = Wᵀu in the type of sums, which the weights have."""
    matrices = [_matrix(weight, weight) for weight in weights]
    rows = [_as_columns(to_accumulator(v), weight) for v, weight in zip(vs, weights, strict=True)]
    next_us = _units([torch.mv(matrix, v) for matrix, v in zip(matrices, rows, strict=True)], us)
    products = [torch.mv(matrix.t(), u) for matrix, u in zip(matrices, next_us, strict=True)]
    products = [_from_columns(s, weight) for s, weight in zip(products, weights, strict=True)]
    next_vs = _units(products, vs)
    torch._foreach_copy_(list(us), next_us)
    torch._foreach_copy_(list(vs), next_vs)
    return next_us, next_vs, products


def _units(found: list[Tensor], before: Sequence[Tensor]) -> list[Tensor]:
    """The vectors `found`, each divided by its norm. Instead of a vector of zeros, the one from `before`."""
    units = torch._foreach_div(found, torch._foreach_clamp_min(torch._foreach_norm(found), EPS))
    return [torch.where(t.any(), unit, kept.to(t.dtype)) for t, unit, kept in zip(found, units, before, strict=True)]


class _Order(NamedTuple):
    """How to bring the dimensions of a weight into the order in which its columns lie in memory, and back."""

    there: tuple[int, ...]
    back: tuple[int, ...]


@functools.lru_cache(maxsize=1024)
def _order(stride: tuple[int, ...]) -> _Order | None:
    """The order for a weight with these strides. None if its columns already lie in their order."""
    there = (0, *sorted(range(1, len(stride)), key=stride.__getitem__, reverse=True))
    if there == tuple(range(len(stride))):
        return None
    return _Order(there, tuple(sorted(range(len(there)), key=there.__getitem__)))


def _matrix(tensor: Tensor, weight: Tensor) -> Tensor:
    """A tensor of the weight's shape as a matrix, whose columns have the order in which those of the weight lie.

    So the matrix of a channels_last weight is a view.
    """
    order = _order(weight.stride())
    return (tensor if order is None else tensor.permute(order.there)).flatten(1)


def _from_matrix(matrix: Tensor, weight: Tensor) -> Tensor:
    """The tensor of the weight's row shape (rows, in, *kernel) whose `_matrix` is given."""
    order = _order(weight.stride())
    if order is None:
        return matrix.view(-1, *weight.shape[1:])
    return matrix.view(-1, *(weight.shape[dim] for dim in order.there[1:])).permute(order.back)


def _as_columns(v: Tensor, weight: Tensor) -> Tensor:
    """A vector v in the order of the columns of `_matrix`."""
    return v if _order(weight.stride()) is None else _matrix(v.view(1, *weight.shape[1:]), weight)[0]


def _from_columns(s: Tensor, weight: Tensor) -> Tensor:
    """A vector in the order of the columns of `_matrix`, in the order of v."""
    return s if _order(weight.stride()) is None else _from_matrix(s[None], weight).flatten()


def forward(
    weights: Sequence[Tensor], us: Sequence[Tensor], vs: Sequence[Tensor], *, dtype: torch.dtype, iterate: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """All Ŵ in `dtype`, each padded with zeros to a multiple of `ALIGNMENT`; all (u, v) one after the other; all σ.

    With `iterate`, an iteration comes first, which changes `us` and `vs`.
    """
    works = [to_accumulator(weight) for weight in weights]
    if iterate:
        us, vs, products = _iterate(works, us, vs)
        sigmas = torch.stack([torch.dot(s, v) for s, v in zip(products, vs, strict=True)])
    else:
        us, vs = ([to_accumulator(vector) for vector in vectors] for vectors in (us, vs))
        products = [torch.mv(work.flatten(1), v) for work, v in zip(works, vs, strict=True)]
        sigmas = torch.stack([torch.dot(u, t) for u, t in zip(us, products, strict=True)])
    sigmas = _nonzero(sigmas)
    places = starts([padded(weight) for weight in weights])
    normalised = weights[0].new_zeros(places[-1], dtype=dtype)
    for weight, work, sigma, place in zip(weights, works, sigmas.unbind(), places, strict=False):
        _divide_into(view(normalised, weight, place), work, sigma)
    return normalised, torch.cat([vector for both in zip(us, vs, strict=True) for vector in both]), sigmas


def backward(
    grads: Sequence[Tensor],
    layers: Sequence[int],
    normalised: Tensor,
    vectors: Tensor,
    sigmas: Tensor,
    weights: Sequence[Tensor],
) -> Tensor:
    """∂L/∂W in the weights' dtype, padded as Ŵ is. `grads` are the ∂L/∂Ŵ of the layers whose numbers are `layers`.

    The other arguments are those that `forward` took and returned. Only the shape and layout of `weights` count.
    """
    places = starts([padded(weight) for weight in weights])
    of_vectors = starts([vectors_size(weight) for weight in weights])
    targets = starts([padded(weights[layer]) for layer in layers])
    gradients = weights[0].new_zeros(targets[-1])
    each_sigma = sigmas.unbind()
    for grad, layer, place in zip(grads, layers, targets, strict=False):
        weight, target = weights[layer], view(gradients, weights[layer], place)
        g, w = to_accumulator(grad), view(normalised, weight, places[layer])
        u, v = vectors[of_vectors[layer] : of_vectors[layer + 1]].split([weight.shape[0], weight.shape[1:].numel()])
        along = u * (g * w).sum()  # g is in the type of sums, and so is the product
        through = torch.addr(_matrix(g, target), along, _as_columns(v, target), alpha=-1)
        _divide_into(target, _from_matrix(through, target), each_sigma[layer])
    return gradients


def _divide_into(target: Tensor, work: Tensor, sigma: Tensor) -> None:
    """Write work / σ to `target`, in the dtype of `target`."""
    if work.dtype == target.dtype:
        torch.div(work, sigma, out=target)
    else:
        target.copy_(work / sigma)


def divisor(weight: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """σ, as a function that can be differentiated."""
    with torch.autocast(weight.device.type, enabled=False):  # σ in bfloat16 would jitter by 0.4 % a step
        work = to_accumulator(weight).flatten(1)
        return _nonzero(torch.dot(to_accumulator(u), torch.mv(work, to_accumulator(v))))


def _nonzero(sigma: Tensor) -> Tensor:
    """σ, or 1 where it is 0."""
    return sigma + (sigma == 0)


def gradient(grad: Tensor, weight: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """∂L/∂W, as a function of G and W that can be differentiated."""
    sigma = divisor(weight, u, v)
    g, w = to_accumulator(grad), to_accumulator(weight)
    return ((g - (g * w).sum() / sigma * torch.outer(u, v).view(w.shape)) / sigma).to(weight.dtype)
