"""Spectral normalisation in plain PyTorch, on any device: the definition that the kernels are tested against."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from vologan_kernels.precision import to_accumulator
from vologan_kernels.spectral_norm.memory import padded, starts, vectors_size, view

EPS = 1e-12


def _iterate(matrix: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The next u, the next v, and s = Wᵀu."""
    t = torch.mv(matrix, v)
    u = torch.where(t.any(), F.normalize(t, dim=0, eps=EPS), u)
    s = torch.mv(matrix.t(), u)
    return u, torch.where(s.any(), F.normalize(s, dim=0, eps=EPS), v), s


def iterate(weights: Sequence[Tensor], us: Sequence[Tensor], vs: Sequence[Tensor]) -> None:
    """One iteration for each weight (out, in, *kernel). It changes the u (out,) and v (in·kernel,) of the weight."""
    for weight, u, v in zip(weights, us, vs, strict=True):
        next_u, next_v, _ = _iterate(to_accumulator(weight).flatten(1), to_accumulator(u), to_accumulator(v))
        u.copy_(next_u)
        v.copy_(next_v)


def forward(
    weights: Sequence[Tensor], us: Sequence[Tensor], vs: Sequence[Tensor], *, dtype: torch.dtype, iterate: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """All Ŵ in `dtype`, each padded with zeros to a multiple of `ALIGNMENT`; all (u, v) one after the other; all σ.

    With `iterate`, an iteration comes first, which changes `us` and `vs`.
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
        _divide_into(view(normalised, weight, place), work, sigma)
        normalised[place + weight.numel() : end].zero_()
        vectors += [u, v]
        sigmas.append(sigma)
    return normalised, torch.cat(vectors), torch.stack(sigmas)


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
    gradients = weights[0].new_empty(targets[-1])
    for grad, layer, target, end in zip(grads, layers, targets, targets[1:], strict=False):
        weight = weights[layer]
        g, w = to_accumulator(grad), to_accumulator(view(normalised, weight, places[layer]))
        u, v = vectors[of_vectors[layer] : of_vectors[layer + 1]].split([weight.shape[0], weight.shape[1:].numel()])
        through = torch.addr(g.flatten(1), u * (g * w).sum(), v, alpha=-1).view(weight.shape)
        _divide_into(view(gradients, weight, target), through, sigmas[layer])
        gradients[target + weight.numel() : end].zero_()
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
