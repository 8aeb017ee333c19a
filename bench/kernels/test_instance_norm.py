"""Instance norm + activation + padding, forward and backward: ours beside the forms that PyTorch has, in one run.

    pytest bench/kernels/test_instance_norm.py

On a GPU the layers are those of `vologan-512` in bfloat16 channels_last. On the CPU they are small ones in float32,
where ours is the native form. The sides:

- *ours*: `InstanceNormAct2d`;
- *eager*: `nn.InstanceNorm2d`, leaky ReLU and padding, one after the other. It copies channels_last tensors;
- *native*: the same on contiguous tensors, which PyTorch's kernels of batch norm take as they are;
- *cuDNN*: cuDNN's batch norm of N · C channels, with leaky ReLU and padding: channels_last for one sample, else
  contiguous. Only on a GPU;
- *compile*: *eager* under torch.compile;
- *ours, one launch*: with `launch.ONE_LAUNCH`. The programs wait for each other, so a fault could make it hang. Only on
  a GPU, and only for planes that do not fit a program.

Each side is a test of its own, so a side that hangs or crashes takes no other with it. It is first checked against the
formula in float64. The floor is the time to move the bytes that must be moved, at the rate of a copy that is measured
beside: forward 1 read and 1 write, backward 2 reads and 1 write. `test_model` adds the modelled time of our kernels
(`vologan_fast.profiling.launch_model`), if the GPU is known to the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from collect import slug
from measuring import (
    DEVICE,
    GPU_CASES,
    ON_GPU,
    Call,
    check_close,
    copies,
    copy_microseconds,
    measure,
    pedantic,
    size_of,
)
from torch import Tensor, nn
from torch.nn import functional as F
from vologan_kernels import InstanceNormAct2d, launch

from vologan_fast.profiling.gpus import GPUS, known

DTYPE = torch.bfloat16 if ON_GPU else torch.float32
SHAPES = (
    [
        ((1, 64, 512, 512), 0),
        ((4, 64, 512, 512), 0),
        ((1, 128, 256, 256), 0),
        ((4, 128, 256, 256), 0),
        ((1, 256, 128, 128), 0),
        ((4, 256, 128, 128), 0),
        ((4, 256, 128, 128), 1),
        ((1, 512, 64, 64), 0),
        ((4, 512, 64, 64), 0),
        ((1, 512, 32, 32), 0),
        ((4, 512, 16, 16), 0),
    ]
    if GPU_CASES
    else [((2, 16, 64, 64), 0), ((2, 64, 16, 16), 1)]
)
"""Shape of x, and width of the padding."""
SLOPE, EPS = 0.3, 1e-3
Case = tuple[tuple[int, int, int, int], int]


class Plain(nn.Module):
    """The code of today's GANs."""

    def __init__(self, channels: int, pad: int) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm2d(channels, eps=EPS, affine=True)
        self.pad = pad

    def forward(self, x: Tensor) -> Tensor:
        y = F.leaky_relu(self.norm(x), SLOPE)
        return F.pad(y, (self.pad,) * 4, mode="reflect") if self.pad else y


class CuDNN(Plain):
    """cuDNN's batch norm over a batch of one sample with N · C channels. That is an instance norm."""

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        weight, bias = (parameter.repeat(n) for parameter in (self.norm.weight, self.norm.bias))
        planes = x if n == 1 else x.reshape(1, n * c, h, w)  # one sample keeps its layout
        y = torch.cudnn_batch_norm(planes, weight, bias, None, None, True, 0.0, EPS)[0]
        y = F.leaky_relu(y.reshape(x.shape), SLOPE)
        return F.pad(y, (self.pad,) * 4, mode="reflect") if self.pad else y


def ours(channels: int, pad: int) -> nn.Module:
    return InstanceNormAct2d(
        channels,
        eps=EPS,
        affine=True,
        activation="leaky_relu",
        negative_slope=SLOPE,
        reflection_pad=pad,
        min_scale=2**-6,
    )


SIDES: dict[str, Callable[[int, int], nn.Module]] = {
    "ours": ours,
    "eager": Plain,
    "native": Plain,
    "cuDNN": CuDNN,
    "compile": lambda channels, pad: torch.compile(Plain(channels, pad), dynamic=False),
    "ours, one launch": ours,
}


def inputs(shape: tuple[int, ...], pad: int, layout: torch.memory_format) -> list[tuple[Tensor, Tensor]]:
    """Pairs (x, ∂L/∂y), so many that L2 does not hold them."""
    n, c, h, w = shape
    grown = n, c, h + 2 * pad, w + 2 * pad

    def random(size: tuple[int, ...]) -> Tensor:
        return torch.randn(size, device=DEVICE).to(DTYPE).contiguous(memory_format=layout)

    tensor_bytes = torch.empty(shape, dtype=DTYPE, device="meta").nbytes
    return [(random(shape).requires_grad_(), random(grown)) for _ in range(copies(4 * tensor_bytes))]


def truth(x: Tensor, grad: Tensor, pad: int) -> tuple[Tensor, Tensor]:
    """y and ∂L/∂x in float64."""
    exact = x.detach().double().requires_grad_()
    centred = exact - exact.mean((2, 3), keepdim=True)
    y = F.leaky_relu(centred / (centred.square().mean((2, 3), keepdim=True) + EPS).sqrt(), SLOPE)
    y = F.pad(y, (pad,) * 4, mode="reflect") if pad else y
    return y, torch.autograd.grad(y, exact, grad.double())[0]


def named(case: Case) -> str:
    shape, pad = case
    return " × ".join(map(str, shape)) + (f", padding {pad}" if pad else "")


def identified(case: Case) -> str:
    shape, pad = case
    return "x".join(map(str, shape)) + (f"-padding{pad}" if pad else "")


GROUP = f"instance norm + leaky_relu, {DTYPE}, channels_last: ".replace("torch.", "")


@pytest.fixture
def one_launch(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let planes that do not fit a program take one launch, for the side that is named so."""
    if request.getfixturevalue("side") != "ours, one launch":
        yield
        return
    planning = pytest.importorskip("vologan_kernels.planned_triton")
    monkeypatch.setattr(launch, "ONE_LAUNCH", True)
    planning.forget_plans()
    yield
    planning.forget_plans()


def fits_a_program(shape: tuple[int, int, int, int], pad: int) -> bool:
    """Whether forward and backward hold whole planes in registers."""
    tiles = (launch.single_tile(shape[2] * shape[3], shape[1], True, 2, backward=b, pad=pad) for b in (False, True))
    return all(tiles)


@pytest.mark.parametrize("side", SIDES, ids=slug)
@pytest.mark.parametrize("case", SHAPES, ids=identified)
def test_instance_norm(case: Case, side: str, one_launch: None, record: Any, request: pytest.FixtureRequest) -> None:
    shape, pad = case
    for direction in ("forward", "backward"):
        record(GROUP + direction, named(case), side)
    if side in ("cuDNN", "ours, one launch") and not ON_GPU:
        pytest.skip("needs a GPU")
    if side == "ours, one launch" and fits_a_program(shape, pad):
        pytest.skip("the plane fits a program")
    contiguous = side == "native" or (side == "cuDNN" and shape[0] > 1)
    layout = torch.contiguous_format if contiguous else torch.channels_last
    if side == "compile":
        torch.compiler.reset()  # it gives up after eight shapes of one module
    size = size_of(shape)
    module = SIDES[side](size[1], pad).to(DEVICE)
    sets = inputs(size, pad, layout)
    count, parameters = len(sets), list(module.parameters())
    x, grad = sets[0]
    y = module(x)
    check_close(side, (y, *torch.autograd.grad(y, x, grad)), truth(x, grad, pad), DTYPE)
    del y

    def forward(i: int) -> Tensor:
        return module(sets[i % count][0])

    outputs: list[Tensor] = []

    def backward(i: int) -> tuple[Tensor, ...]:
        x, grad = sets[i % count]
        return torch.autograd.grad(outputs[i % count], [x, *parameters], grad, retain_graph=True)

    calls: dict[str, Call] = {"forward": forward, "backward": backward}
    if record.preparing:
        pytest.skip("prepared")
    copy = copy_microseconds([x for x, _ in sets]) if side == "ours" else None
    for direction, call in calls.items():
        if direction == "backward":
            outputs += [module(x) for x, _ in sets]
        record(GROUP + direction, named(case), side, **measure(call, count).row)
        if copy is not None:
            floor = copy * (2 if direction == "forward" else 3) / 2
            record(GROUP + direction, named(case), side, floor_microseconds=floor)
    if side == "ours":
        pedantic(request.getfixturevalue("benchmark"), lambda i: (forward(i), backward(i)))


@pytest.mark.skipif(not GPU_CASES, reason="the model knows only GPUs")
@pytest.mark.parametrize("side", ["ours", "ours, one launch"], ids=slug)
@pytest.mark.parametrize("case", SHAPES, ids=identified)
def test_model(case: Case, side: str, one_launch: None, record: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Add the modelled times. This takes no time on a GPU, but some seconds of the host, which compiles the kernels."""
    shape, pad = case
    if side != "ours" and fits_a_program(shape, pad):
        pytest.skip("the plane fits a program")
    gpu = GPUS["H200"]
    if ON_GPU:
        device = torch.cuda.get_device_properties()
        found = known(device.name, device.multi_processor_count, device.total_memory)
        if found is None:
            pytest.skip(f"the model does not know a {device.name} with {device.multi_processor_count} multiprocessors")
        gpu = found
    pytest.importorskip("triton")
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "static_cost")
    from norm_times import Layer, compiled, cut_for, launches_of, time_of

    with cut_for(gpu.multiprocessors):
        both = launches_of(Layer(shape, SLOPE, pad))
    for direction, launches in zip(("forward", "backward"), both, strict=True):
        microseconds = 1e6 * time_of(launches, compiled, gpu)
        record(GROUP + direction, named(case), side, modelled_microseconds=microseconds)
