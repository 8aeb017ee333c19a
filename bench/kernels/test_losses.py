"""The losses of a training step, forward and backward: ours beside eager PyTorch and torch.compile, in one run.

    pytest bench/kernels/test_losses.py

On a GPU the sizes are those of `vologan-512`. On the CPU they are small, and ours is the plain PyTorch form as one
operation. The images are small, so on a GPU the count of launches decides, and not the floor. The floor is 1 read of
each image forward, and backward 1 read of each and 1 write of the predictions' gradients.
"""

from collections.abc import Callable

import pytest
import torch
from measuring import COPIES, DEVICE, ON_GPU, beside, check_close, copy_microseconds
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor
from vologan_kernels import adversarial_losses, pixel_losses

SIDE = 512 if ON_GPU else 64
BATCHES = [1, 8] if ON_GPU else [2]
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
    floor: float,
    benchmark: BenchmarkFixture,
    capsys: pytest.CaptureFixture[str],
    title: str,
) -> None:
    """Forward and backward with respect to the first `learns` tensors."""

    def both(function: Callable[[list[Tensor]], Tensor], tensors: list[Tensor]) -> tuple[Tensor, ...]:
        loss = function(tensors)
        return loss, *torch.autograd.grad(loss, tensors[:learns])

    sides = {"eager": plain, "compile": torch.compile(plain, dynamic=False), "ours": ours}
    exact = [tensor.detach().double().requires_grad_() for tensor in sets[0]]
    for name, function in sides.items():
        check_close(name, both(function, sets[0]), both(plain, exact), torch.float32)
    calls = {name: lambda i, function=function: both(function, sets[i % COPIES]) for name, function in sides.items()}
    beside(benchmark, capsys, title, calls, floor)


@pytest.mark.parametrize("batch", BATCHES)
def test_pixel_losses(batch: int, benchmark: BenchmarkFixture, capsys: pytest.CaptureFixture[str]) -> None:
    layout = torch.channels_last if ON_GPU else torch.contiguous_format
    sets = [
        [torch.rand(batch, 4, SIDE, SIDE, device=DEVICE).contiguous(memory_format=layout) for _ in range(8)]
        for _ in range(COPIES)
    ]
    for images in sets:
        for prediction in images[:4]:
            prediction.requires_grad_()
    floor = copy_microseconds([images[0] for images in sets]) / 2 * (8 + 8 + 4)
    benchmark.group = "pixel losses, 4 pairs, forward + backward"
    title = f"4 pairs {batch} × 4 × {SIDE}²"
    compare(plain_pixel_losses, our_pixel_losses, sets, 4, floor, benchmark, capsys, title)


@pytest.mark.parametrize("batch", BATCHES)
def test_adversarial_losses(batch: int, benchmark: BenchmarkFixture, capsys: pytest.CaptureFixture[str]) -> None:
    """The outputs of both discriminators for real and fake images, in float32, so that float64 can judge every side."""
    width = 64 if ON_GPU else 16
    shapes = [(batch, width, SIDE, SIDE), (batch, 8 * width, 1, 1), (batch, 1, SIDE // 8, SIDE // 8)] * 4
    sets = [[torch.randn(shape, device=DEVICE).requires_grad_() for shape in shapes] for _ in range(COPIES)]
    floor = copy_microseconds([logits[0] for logits in sets]) / 2 * 4 * 3
    benchmark.group = "adversarial losses, 12 outputs, forward + backward"
    title = f"12 outputs, {batch} × {width} × {SIDE}² …"
    compare(plain_adversarial_losses, our_adversarial_losses, sets, len(shapes), floor, benchmark, capsys, title)
