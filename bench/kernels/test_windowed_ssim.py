"""1 − windowed SSIM, forward and backward: ours beside eager PyTorch, torch.compile, pytorch-msssim and torchmetrics.

    pytest bench/kernels/test_windowed_ssim.py

One round is the loss of a batch of RGB images in float32, and its gradient in the first image, as in a training step.
Each side also has the size of all tensors that it keeps for its backward besides the two images, in units of one image,
and on a GPU its peak above the images, in MiB. torchmetrics takes the windows around every pixel. The others take the
windows inside the image, which are 4 % fewer at 512². Each side is first checked against the formula in float64,
because a wrong result has no speed. Packages that are not installed have no side.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from measuring import DEVICE, GPU_CASES, ON_GPU, Call, beside, size_of
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor
from torch.nn import functional as F
from vologan_kernels import windowed_ssim


def installed(name: str) -> Any:
    """Return the module, or None without it."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


pytorch_msssim, torchmetrics = installed("pytorch_msssim"), installed("torchmetrics.functional.image")
SHAPES = (
    [(1, 3, 512, 512), (4, 3, 512, 512), (16, 3, 512, 512), (16, 3, 256, 256)]
    if GPU_CASES
    else [(1, 3, 64, 64), (4, 3, 256, 256)]
)
Loss = Callable[[Tensor, Tensor], Tensor]


def plain(a: Tensor, b: Tensor) -> Tensor:
    """The formula as it is commonly written: five convolutions with an 11 × 11 window."""
    c = a.shape[1]
    k = torch.arange(-5, 6, dtype=a.dtype, device=a.device)
    line = torch.exp(-k.square() / (2 * 1.5**2))
    weight = (line[:, None] * line / line.sum() ** 2).expand(c, 1, 11, 11)
    mu_a, mu_b = (F.conv2d(x, weight, groups=c) for x in (a, b))
    var_a = F.conv2d(a * a, weight, groups=c) - mu_a.square()
    var_b = F.conv2d(b * b, weight, groups=c) - mu_b.square()
    cov = F.conv2d(a * b, weight, groups=c) - mu_a * mu_b
    luminance = (2 * mu_a * mu_b + 0.01**2) / (mu_a.square() + mu_b.square() + 0.01**2)
    return (luminance * (2 * cov + 0.03**2) / (var_a + var_b + 0.03**2)).mean()


SIDES: dict[str, Loss] = {"ours": windowed_ssim, "eager": plain}
if pytorch_msssim:
    SIDES["pytorch-msssim"] = lambda a, b: pytorch_msssim.ssim(a, b, data_range=1.0)
if torchmetrics:
    SIDES["torchmetrics"] = lambda a, b: torchmetrics.structural_similarity_index_measure(a, b, data_range=1.0)
SIDES["compile"] = torch.compile(plain, dynamic=False)
SIDES["ours compiled"] = torch.compile(windowed_ssim, dynamic=False)


def step(loss: Loss, a: Tensor, b: Tensor) -> Call:
    return lambda _: torch.autograd.grad(1 - loss(a, b), a)


def check(name: str, loss: Loss, a: Tensor, b: Tensor) -> None:
    """Value and gradient agree with the formula in float64."""
    found = loss(a, b)
    (gradient,) = torch.autograd.grad(found, a)
    p, q = a.detach().double().requires_grad_(), b.double()
    padded = [F.pad(x, (5, 5, 5, 5), mode="reflect") if name == "torchmetrics" else x for x in (p, q)]
    truth = plain(*padded)
    (true_gradient,) = torch.autograd.grad(truth, p)
    error = ((gradient.double() - true_gradient).norm() / true_gradient.norm()).item()
    assert abs(found.item() - truth.item()) < 1e-5, f"{name} gives {found.item():.7f}, not {truth.item():.7f}"
    assert error < 1e-4, f"{name} computes a wrong gradient: relative error {error:.2g}"


def kept_bytes(loss: Loss, a: Tensor, b: Tensor) -> int:
    """Bytes of the storages that the graph keeps, other than the images."""
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss(a, b)
    images = {image.untyped_storage().data_ptr() for image in (a, b)}
    return sum(tensor.untyped_storage().nbytes() for at, tensor in kept.items() if at not in images)


def peak_mebibytes(call: Call) -> float | None:
    """The peak of allocated bytes during the call, above those before it. None on the CPU, which counts none."""
    if not ON_GPU:
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call(0)
    return round((torch.cuda.max_memory_allocated() - before) / 2**20, 1)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_windowed_ssim(shape: tuple[int, int, int, int], benchmark: BenchmarkFixture, record: Any) -> None:
    group, case = "1 − windowed SSIM, forward and backward, float32", " × ".join(map(str, shape))
    b = torch.rand(sized(shape), device=DEVICE)
    a = (0.7 * b + 0.3 * torch.rand_like(b)).requires_grad_()

    def side(name: str, loss: Loss) -> Callable[[], Call]:
        def checked() -> Call:
            check(name, loss, a, b)
            call = step(loss, a, b)
            kept = round(kept_bytes(loss, a, b) / a.nbytes, 1)
            record(group, case, name, kept_in_images=kept, peak_mebibytes=peak_mebibytes(call))
            return call

        return checked

    beside(record, benchmark, group, case, {name: side(name, loss) for name, loss in SIDES.items()}, None)


def sized(shape: tuple[int, int, int, int]) -> tuple[int, ...]:
    """The shape itself, or in a rehearsal one that just holds a window."""
    return shape if size_of(shape) == shape else (1, 3, 16, 16)
