"""Instance norm + activation, forward and backward: ours beside eager PyTorch and torch.compile, in one run.

    pytest bench/kernels

On a GPU the layers of `vologan-512` in bfloat16 channels_last; on the CPU small ones in float32, where ours is the
plain PyTorch form. Each row gives, and keeps in the benchmark's `extra_info`: microseconds of each side (medians), the
bytes that must be moved (forward 1 read + 1 write, backward 2 reads + 1 write), and what share of this machine's copy
bandwidth, measured beside it, they amount to. Each side is first checked against the formula in float64: a wrong result
has no speed.
"""

import statistics
import time
from collections.abc import Callable

import pytest
import torch
import torch._functorch.config
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor, nn
from torch.nn import functional as F
from vologan_kernels import InstanceNormAct2d

torch._functorch.config.donated_buffer = False  # torch.compile's backward runs many times over one forward

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
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
COPIES = 4 if ON_GPU else 1
"""Sets of tensors used in turn, so that on a GPU none is found in the L2 cache."""
SLOPE, EPS = 0.3, 1e-3


class Eager(nn.Module):
    """What a GAN's code says today."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm2d(channels, eps=EPS, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.norm(x), SLOPE)


def ours(channels: int) -> nn.Module:
    return InstanceNormAct2d(
        channels, eps=EPS, affine=True, activation="leaky_relu", negative_slope=SLOPE, min_scale=2**-6
    )


def microseconds(function: Callable[[int], object], rounds: int = 50 if ON_GPU else 20) -> float:
    """Median time of function(round)."""
    for i in range(5):
        function(i)
    times = []
    for i in range(rounds):
        if ON_GPU:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            function(i)
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end) * 1e3)
        else:
            began = time.perf_counter()
            function(i)
            times.append((time.perf_counter() - began) * 1e6)
    return statistics.median(times)


def inputs(shape: tuple[int, ...]) -> list[tuple[Tensor, Tensor]]:
    """(x, ∂L/∂y), COPIES of them."""
    layout = torch.channels_last
    tensors = [torch.randn(shape, device=DEVICE).to(DTYPE).contiguous(memory_format=layout) for _ in range(2 * COPIES)]
    return [(x.requires_grad_(), grad) for x, grad in zip(tensors[::2], tensors[1::2], strict=True)]


def check(name: str, module: nn.Module, x: Tensor, grad: Tensor) -> None:
    """y and ∂L/∂x agree with the formula in float64 to some roundings of the type."""
    y = module(x)
    (dx,) = torch.autograd.grad(y, x, grad)
    exact = x.detach().double().requires_grad_()
    centred = exact - exact.mean((2, 3), keepdim=True)
    truth = F.leaky_relu(centred / (centred.square().mean((2, 3), keepdim=True) + EPS).sqrt(), SLOPE)
    (true_dx,) = torch.autograd.grad(truth, exact, grad.double())
    for what, found, expected in (("y", y, truth), ("dx", dx, true_dx)):
        error = (found.double() - expected).norm() / expected.norm()
        assert error < 16 * torch.finfo(DTYPE).eps, f"{name} computes a wrong {what}: relative error {error:.2g}"


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_instance_norm(
    shape: tuple[int, int, int, int], direction: str, benchmark: BenchmarkFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = inputs(shape)
    eager = Eager(shape[1]).to(DEVICE)
    sides = {"eager": eager, "compile": torch.compile(eager, dynamic=False), "ours": ours(shape[1]).to(DEVICE)}
    calls: dict[str, Callable[[int], object]] = {}
    for name, module in sides.items():
        check(name, module, *sets[0])
        if direction == "forward":
            calls[name] = lambda i, module=module: module(sets[i % COPIES][0])
        else:
            outputs = [module(x) for x, _ in sets]
            parameters = list(module.parameters())
            calls[name] = lambda i, outputs=outputs, parameters=parameters: torch.autograd.grad(
                outputs[i % COPIES], [sets[i % COPIES][0], *parameters], sets[i % COPIES][1], retain_graph=True
            )
    destination = torch.empty_like(sets[0][0])
    copy = microseconds(lambda i: destination.copy_(sets[i % COPIES][0].detach()))
    times = {name: microseconds(call) for name, call in calls.items()}

    tensor_bytes = sets[0][0].numel() * sets[0][0].element_size()
    floor = copy * (2 if direction == "forward" else 3) / 2
    benchmark.group = f"instance norm + leaky_relu, {direction}, {DTYPE}, channels_last"
    benchmark.extra_info.update(
        device=torch.cuda.get_device_name() if ON_GPU else "CPU",
        shape=shape,
        microseconds=times,
        required_bytes=tensor_bytes * (2 if direction == "forward" else 3),
        floor_microseconds=floor,
        percent_of_copy_bandwidth=round(100 * floor / times["ours"], 1),
        ratio_to_eager=round(times["eager"] / times["ours"], 2),
        ratio_to_compile=round(times["compile"] / times["ours"], 2),
    )
    benchmark.pedantic(_finished, args=(calls["ours"],), rounds=20, warmup_rounds=3)
    with capsys.disabled():
        row = "  ".join(f"{name} {time:.0f} µs" for name, time in times.items())
        print(f"\n{direction:8} {shape!s:20} {row}  floor {floor:.0f} µs = {100 * floor / times['ours']:.0f} %")


def _finished(call: Callable[[int], object]) -> None:
    call(0)
    if ON_GPU:
        torch.cuda.synchronize()
