"""The losses of a training step, forward and backward: ours beside eager PyTorch and torch.compile, in one run.

    pytest bench/kernels/test_losses.py

On a GPU the sizes are those of `vologan-512`. On the CPU they are small, and ours is the plain PyTorch form as one
operation. The images are small, so on a GPU the count of launches decides, and not the floor. The floor is 1 read of
each image forward, and backward 1 read of each and 1 write of the predictions' gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from measuring import COPIES, DEVICE, GPU_CASES, ON_GPU, REHEARSAL, Call, beside, check_close, copy_microseconds
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor
from vologan_kernels import adversarial_losses, pixel_losses

SIDE = 512 if ON_GPU else 16 if REHEARSAL else 64
BATCHES = [1, 8] if GPU_CASES else [2]
CHANNEL_WEIGHT = (1.0, 1.0, 1.0, 3.0)
WEIGHTS = [(10.0, 0.0, 1.0), (0.5, 0.0, 0.0)] * 2
"""The pairs of a cycle and an identity, in both directions."""


def plain_pixel_losses(images: list[Tensor]) -> Tensor:
    """The code of today's GANs, which computes each pair and metric for itself."""
    channel_weight = images[0].new_tensor(CHANNEL_WEIGHT)
    loss = images[0].new_zeros(())
    for a, b, (l1, _, ssim) in zip(images[:4], images[4:], WEIGHTS, strict=True):
        loss = loss + l1 * ((a - b).abs().mean((0, 2, 3)) * channel_weight).sum()
        if ssim:
            (va, ma), (vb, mb) = (torch.var_mean(x, (2, 3), correction=0, keepdim=True) for x in (a, b))
            covariance = ((a - ma) * (b - mb)).mean((2, 3), keepdim=True)
            luminance = (2 * ma * mb + 1e-4) / (ma.square() + mb.square() + 1e-4)
            structure = (2 * covariance + 9e-4) / (va + vb + 9e-4)
            loss = loss + ssim * ((1 - luminance * structure).mean((0, 2, 3)) * channel_weight).sum()
    return loss


def our_pixel_losses(images: list[Tensor]) -> Tensor:
    return pixel_losses(list(zip(images[:4], images[4:], strict=True)), WEIGHTS, CHANNEL_WEIGHT)[0]


def plain_adversarial_losses(logits: list[Tensor]) -> Tensor:
    real, fake = logits[: len(logits) // 2], logits[len(logits) // 2 :]
    return torch.stack([(z - 1).square().mean() for z in real] + [z.square().mean() for z in fake]).sum()


def our_adversarial_losses(logits: list[Tensor]) -> Tensor:
    half = len(logits) // 2
    return adversarial_losses(logits, ["real"] * half + ["fake"] * half)[0]  # type: ignore[arg-type]


def compare(
    plain: Callable[[list[Tensor]], Tensor],
    ours: Callable[[list[Tensor]], Tensor],
    sets: list[list[Tensor]],
    learns: int,
    passes: int,
    group: str,
    case: str,
    record: Any,
    benchmark: BenchmarkFixture,
) -> None:
    """Forward and backward with respect to the first `learns` tensors. The floor moves the first one `passes` times."""

    def both(function: Callable[[list[Tensor]], Tensor], tensors: list[Tensor]) -> tuple[Tensor, ...]:
        loss = function(tensors)
        return loss, *torch.autograd.grad(loss, tensors[:learns])

    exact = [tensor.detach().double().requires_grad_() for tensor in sets[0]]
    truth = both(plain, exact)

    def side(name: str, function: Callable[[list[Tensor]], Tensor]) -> Callable[[], Call]:
        def checked() -> Call:
            check_close(name, both(function, sets[0]), truth, torch.float32)
            return lambda i: both(function, sets[i % COPIES])

        return checked

    functions = {"ours": ours, "eager": plain, "compile": torch.compile(plain, dynamic=False)}
    sides = {name: side(name, function) for name, function in functions.items()}
    beside(record, benchmark, group, case, sides, lambda: copy_microseconds([first[0] for first in sets]) / 2 * passes)


@pytest.mark.parametrize("batch", BATCHES)
def test_pixel_losses(batch: int, benchmark: BenchmarkFixture, record: Any) -> None:
    layout = torch.channels_last if ON_GPU else torch.contiguous_format
    sets = [
        [torch.rand(batch, 4, SIDE, SIDE, device=DEVICE).contiguous(memory_format=layout) for _ in range(8)]
        for _ in range(COPIES)
    ]
    for images in sets:
        for prediction in images[:4]:
            prediction.requires_grad_()
    group, case = "pixel losses, 4 pairs, forward + backward", f"{batch} × 4 × {SIDE}²"
    compare(plain_pixel_losses, our_pixel_losses, sets, 4, 8 + 8 + 4, group, case, record, benchmark)


@pytest.mark.parametrize("batch", BATCHES)
def test_adversarial_losses(batch: int, benchmark: BenchmarkFixture, record: Any) -> None:
    """The outputs of both discriminators for real and fake images, in float32, so that float64 can judge every side."""
    width = 64 if ON_GPU else 16
    shapes = [(batch, width, SIDE, SIDE), (batch, 8 * width, 1, 1), (batch, 1, SIDE // 8, SIDE // 8)] * 4
    sets = [[torch.randn(shape, device=DEVICE).requires_grad_() for shape in shapes] for _ in range(COPIES)]
    group, case = "adversarial losses, 12 outputs, forward + backward", f"{batch} × {width} × {SIDE}² …"
    compare(plain_adversarial_losses, our_adversarial_losses, sets, len(shapes), 4 * 3, group, case, record, benchmark)
