"""Instance norm + activation, forward and backward: ours beside eager PyTorch and torch.compile, in one run.

    pytest bench/kernels

On a GPU the layers are those of `vologan-512` in bfloat16 channels_last. On the CPU they are small ones in float32,
where ours is the plain PyTorch form. Each row gives the microseconds of each side (medians), and a share of this
machine's copy bandwidth, which is measured beside it. The share is for the bytes that must be moved: forward 1 read and
1 write, backward 2 reads and 1 write. The benchmark's `extra_info` keeps the row. Each side is first checked against
the formula in float64.
"""

import pytest
import torch
from measuring import COPIES, DEVICE, ON_GPU, Call, beside, check_close, copy_microseconds
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor, nn
from torch.nn import functional as F
from vologan_kernels import InstanceNormAct2d

DTYPE = torch.bfloat16 if ON_GPU else torch.float32
SHAPES = (
    [
        (1, 64, 512, 512),
        (1, 128, 256, 256),
        (8, 128, 256, 256),
        (1, 256, 128, 128),
        (1, 512, 64, 64),
        (1, 512, 32, 32),
        (8, 512, 16, 16),
    ]
    if ON_GPU
    else [(2, 16, 64, 64), (2, 64, 16, 16)]
)
SLOPE, EPS = 0.3, 1e-3


class Eager(nn.Module):
    """The code of today's GANs."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm2d(channels, eps=EPS, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.norm(x), SLOPE)


def ours(channels: int) -> nn.Module:
    return InstanceNormAct2d(
        channels, eps=EPS, affine=True, activation="leaky_relu", negative_slope=SLOPE, min_scale=2**-6
    )


def inputs(shape: tuple[int, ...]) -> list[tuple[Tensor, Tensor]]:
    """Pairs (x, ∂L/∂y); there are COPIES of them."""
    layout = torch.channels_last
    tensors = [torch.randn(shape, device=DEVICE).to(DTYPE).contiguous(memory_format=layout) for _ in range(2 * COPIES)]
    return [(x.requires_grad_(), grad) for x, grad in zip(tensors[::2], tensors[1::2], strict=True)]


def truth(x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """y and ∂L/∂x in float64."""
    exact = x.detach().double().requires_grad_()
    centred = exact - exact.mean((2, 3), keepdim=True)
    y = F.leaky_relu(centred / (centred.square().mean((2, 3), keepdim=True) + EPS).sqrt(), SLOPE)
    return y, torch.autograd.grad(y, exact, grad.double())[0]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_instance_norm(
    shape: tuple[int, int, int, int], direction: str, benchmark: BenchmarkFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = inputs(shape)
    eager = Eager(shape[1]).to(DEVICE)
    sides = {"eager": eager, "compile": torch.compile(eager, dynamic=False), "ours": ours(shape[1]).to(DEVICE)}
    calls: dict[str, Call] = {}
    for name, module in sides.items():
        y = module(sets[0][0])
        check_close(name, (y, *torch.autograd.grad(y, sets[0][0], sets[0][1])), truth(*sets[0]), DTYPE)
        if direction == "forward":
            calls[name] = lambda i, module=module: module(sets[i % COPIES][0])
        else:
            outputs = [module(x) for x, _ in sets]
            parameters = list(module.parameters())
            calls[name] = lambda i, outputs=outputs, parameters=parameters: torch.autograd.grad(
                outputs[i % COPIES], [sets[i % COPIES][0], *parameters], sets[i % COPIES][1], retain_graph=True
            )
    benchmark.group = f"instance norm + leaky_relu, {direction}, {DTYPE}, channels_last"
    floor = copy_microseconds([x for x, _ in sets]) * (2 if direction == "forward" else 3) / 2
    beside(benchmark, capsys, f"{direction} {shape}", calls, floor, shape=shape)
