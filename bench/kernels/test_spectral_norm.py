"""Spectral norm of a model's convolutions in a training step: ours beside torch's and torch.compile, in one run.

    pytest bench/kernels/test_spectral_norm.py

One round is a power iteration for every layer, three forwards that read each layer's weight, and the backward of all.
A step has three forwards of a generator. torch's own norm iterates in each of them, and its users pay for that. "once"
is torch's norm with one iteration a step, in a loop over the layers. "compile" is that loop compiled. On a GPU the
layers are those of a `vologan-512` generator, on the CPU of a small model. The floor is three reads and one write of
the weights forward, and three reads and one write backward.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from measuring import DEVICE, ON_GPU, Call, beside, check_close, copy_microseconds
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor, nn
from torch.nn import functional as F
from vologan_kernels import spectral_norm, spectral_norm_step

PASSES = 3
SHAPES = (
    [(64, 64, 7), (128, 64, 3), (128, 128, 3), (256, 256, 3)] + [(512, 512, 3)] * 16 + [(2048, 512, 1)] * 2
    if ON_GPU
    else [(16, 16, 3)] * 6 + [(32, 32, 3)] * 6
)


def loop(weights: list[Tensor], us: list[Tensor], vs: list[Tensor]) -> list[Tensor]:
    """One iteration and the normalised weights, layer by layer."""
    normalised = []
    for weight, u, v in zip(weights, us, vs, strict=True):
        matrix = weight.flatten(1)
        with torch.no_grad():
            u.copy_(F.normalize(torch.mv(matrix, v), dim=0, eps=1e-12))
            v.copy_(F.normalize(torch.mv(matrix.t(), u), dim=0, eps=1e-12))
        normalised.append(weight / torch.dot(u.clone(), torch.mv(matrix, v.clone())))
    return normalised


def test_spectral_norm(benchmark: BenchmarkFixture, record: Any) -> None:
    convolutions = [nn.Conv2d(channels, width, side, bias=False, device=DEVICE) for width, channels, side in SHAPES]
    ours = nn.ModuleList(spectral_norm(convolution) for convolution in convolutions)
    torchs = nn.ModuleList(
        torch.nn.utils.parametrizations.spectral_norm(nn.Conv2d(channels, width, side, bias=False, device=DEVICE))
        for width, channels, side in SHAPES
    )
    torchs.load_state_dict(ours.state_dict())
    grads = [torch.randn(width, channels, side, side, device=DEVICE) for width, channels, side in SHAPES]
    weights = [layer.parametrizations.weight.original for layer in ours]

    def vectors() -> tuple[list[Tensor], list[Tensor]]:
        normalisations = [layer.parametrizations.weight[0] for layer in copy.deepcopy(ours)]
        return [layer._u for layer in normalisations], [layer._v for layer in normalisations]

    def by_torch() -> tuple[Tensor, ...]:
        passes = [layer.weight for _ in range(PASSES) for layer in torchs]
        return torch.autograd.grad(passes, list(torchs.parameters()), grads * PASSES)

    def once(function: Callable[..., list[Tensor]]) -> Callable[[], tuple[Tensor, ...]]:
        us, vs = vectors()
        return lambda: torch.autograd.grad(function(weights, us, vs) * PASSES, weights, grads * PASSES)

    def by_us() -> tuple[Tensor, ...]:
        with spectral_norm_step(ours):
            passes = [layer.weight for _ in range(PASSES) for layer in ours]
            return torch.autograd.grad(passes, weights, grads * PASSES)

    exact = [[tensor.double() for tensor in tensors] for tensors in (weights, *vectors())]
    exact[0] = [weight.detach().requires_grad_() for weight in exact[0]]
    truth = torch.autograd.grad(loop(*exact), exact[0], [PASSES * grad.double() for grad in grads])

    def side(name: str, function: Callable[[], tuple[Tensor, ...]]) -> Callable[[], Call]:
        def checked() -> Call:
            if name != "torch":  # which iterates three times: another σ
                check_close(name, function(), truth, torch.float32)
            return lambda i: function()

        return checked

    functions = {  # all take their vectors before a side changes them
        "torch": by_torch,
        "once": once(loop),
        "compile": once(torch.compile(loop, dynamic=False)),
        "ours": by_us,
    }
    sides = {name: side(name, function) for name, function in functions.items()}
    flat = torch.empty(sum(weight.numel() for weight in weights), device=DEVICE)
    group = "spectral norm, a step's three forwards and the backward"
    case = f"{len(SHAPES)} layers, {flat.numel() / 1e6:.1f} M weights"
    beside(record, benchmark, group, case, sides, lambda: copy_microseconds([flat]) / 2 * 8)
