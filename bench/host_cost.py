"""What the host pays for a call of our operations, beside a small `torch.add`: timed, and counted.

    python bench/host_cost.py [--counts]

A GPU is as slow as its host if the host needs longer to make the launches than the GPU to run them. This script
measures the host alone, on a machine without a GPU. All is real but four things:

- Triton's driver is a stand-in. Kernels are compiled for sm_90, but the launcher of a compiled kernel does nothing.
- The tensors lie on the CPU, and `dispatch` is told that they lie on a GPU.
- So PyTorch's own operations, such as `torch.empty`, are those of the CPU.
- Where an operation would ask for the GPU's stream, it makes a new counter instead (`device.arrivals`).

The unit is a `torch.add` of two small tensors on the CPU, which is timed in turn with every row. The first two rows are
PyTorch's own. A view has a backward that is almost only the start of PyTorch's autograd. This start is subtracted from
all other backwards, because a training step pays it once. The backward of a norm is its share in a chain of norms. An
autograd function that only makes tensors, as many as a norm makes, is what no such function can undercut.

The counts are those of one call: functions of Python that it enters, other functions that Python calls, launches, and
operations of PyTorch, also those inside of another. PyTorch's profiler counts the operations, and under it a norm or a
loss is an operation, too. `--counts` prints them as JSON and times nothing. Needs Triton,
not its interpreter.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from vologan_kernels import (
    InstanceNormAct2d,
    NAdam,
    adversarial_losses,
    dispatch,
    native_library,
    pixel_losses,
    spectral_norm,
    spectral_norm_step,
    windowed_ssim,
)

Call = Callable[[], object]

# ---- stand-ins ------------------------------------------------------------------------------------------------------


class Launcher:
    """A launcher of a compiled kernel that counts the launches it does not make."""

    launches = 0

    def __init__(self, *description: Any) -> None:
        pass

    def __call__(self, *arguments: Any) -> None:
        Launcher.launches += 1


class _Utilities:
    """What Triton asks of a GPU when it loads a kernel."""

    def __init__(self) -> None:
        self._handles = itertools.count(1)

    def load_binary(self, *arguments: Any) -> tuple[Any, ...]:
        module, function = next(self._handles), next(self._handles)
        return module, function, 0, 0, 1024  # registers, spills, the most threads of a program

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 227 * 1024}


class _Driver:
    """A driver that only names its GPU."""

    def __init__(self, launcher: Callable[..., Any]) -> None:
        self.utils, self.launcher_cls = _Utilities(), launcher

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def pretend_a_gpu(launcher: Callable[..., Any] = Launcher) -> None:
    """Put the stand-ins in their places, for the rest of the process."""
    driver.set_active(_Driver(launcher))
    dispatch._is_gpu = lambda x: True
    native_library.refusal = lambda x: "x must be a CPU tensor"


# ---- what is measured -----------------------------------------------------------------------------------------------


class Row(NamedTuple):
    name: str
    forward: Call
    backward: Call | None = None
    chain: Call | None = None
    """The backward of CHAIN more of the same, one after the other."""


CHAIN = 8


def rows() -> Iterator[Row]:
    """All rows. The first is a view, of PyTorch's own."""
    x = torch.zeros(8, 8, requires_grad=True)
    view = x.view_as(x)
    yield Row("a view (PyTorch)", lambda: x.view_as(x), lambda: torch.autograd.grad(view, x, view, retain_graph=True))
    yield _function()
    yield from _operations("one launch", (1, 512, 32, 32))
    yield from _operations("two launches", (1, 64, 128, 128))
    yield _norm("norm, one launch", (1, 512, 32, 32))
    yield _norm("norm, two launches", (1, 64, 128, 128))
    yield _norm("norm, two launches, residual", (1, 64, 128, 128), residual=True)
    yield _norm("norm, one launch, no gradient", (1, 512, 32, 32), needs_gradient=False)
    yield _pixel_losses()
    yield _adversarial_losses()
    yield _windowed_ssim()
    yield _spectral_norm()
    yield _nadam()


class _Makes(torch.autograd.Function):
    """Makes and keeps the tensors that a norm makes and keeps."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y, mean, rstd = torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, mean, rstd, weight, bias)
        return y, mean, rstd

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *others: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        x, _, _, weight, bias = ctx.saved_tensors
        return torch.empty_like(x), torch.empty_like(weight), torch.empty_like(bias)


def _function() -> Row:
    functions = []
    for _ in range(1 + CHAIN):
        parameters = [torch.zeros(8, requires_grad=True) for _ in range(2)]
        functions.append((lambda x, parameters=parameters: _Makes.apply(x, *parameters)[0], parameters))
    return _chained("an autograd function that only makes tensors (PyTorch)", functions, torch.zeros(8, 8))


def _chained(name: str, functions: Sequence[tuple[Callable[..., Tensor], Sequence[Tensor]]], x: Tensor) -> Row:
    """A row of functions that are alike, each with its parameters. They are called one after the other."""
    x.requires_grad_()

    def backward(count: int) -> Call:
        y, inputs = x, [x]
        for function, parameters in functions[:count]:
            y = function(y)
            inputs += parameters
        grad = torch.zeros_like(y)
        return lambda: torch.autograd.grad(y, inputs, grad, retain_graph=True)

    function, _ = functions[0]
    return Row(name, lambda: function(x), backward(1), backward(1 + CHAIN))


def _operations(name: str, shape: tuple[int, int, int, int]) -> Iterator[Row]:
    """A norm's operations of `torch.library`, without autograd."""
    x = torch.zeros(shape, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
    weight, bias = torch.ones(shape[1]), torch.zeros(shape[1])
    options = "leaky_relu", 0.3, 0, 2**-6
    ours = torch.ops.vologan_kernels
    forward, backward = ours.instance_norm_act, ours.instance_norm_act_backward
    y, mean, rstd = forward(x, weight, bias, None, None, 1e-3, *options, "auto")
    yield Row(
        f"operation of a norm's forward, {name}",
        lambda: forward(x, weight, bias, None, None, 1e-3, *options, "auto"),
    )
    yield Row(
        f"operation of a norm's backward, {name}",
        lambda: backward(y, y, mean, rstd, weight, bias, None, None, *options, True, "auto"),
    )


def _norm(name: str, shape: tuple[int, int, int, int], *, residual: bool = False, needs_gradient: bool = True) -> Row:
    """A norm of `vologan-512`, in bfloat16 and channels_last."""
    x = torch.zeros(shape, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
    added = x.clone() if residual else None
    norms = [
        InstanceNormAct2d(shape[1], affine=True, activation="leaky_relu", negative_slope=0.3, min_scale=2**-6)
        for _ in range(1 + CHAIN)
    ]
    if not needs_gradient:
        norm = norms[0].requires_grad_(False)
        return Row(name, lambda: norm(x, added))
    functions = [(lambda x, norm=norm: norm(x, added), list(norm.parameters())) for norm in norms]
    return _chained(name, functions, x)


def _images(count: int) -> list[Tensor]:
    return [torch.zeros(1, 4, 64, 64).contiguous(memory_format=torch.channels_last) for _ in range(count)]


def _pixel_losses() -> Row:
    """The two cycles and two identities of a step."""
    predictions = [image.requires_grad_() for image in _images(4)]
    pairs = list(zip(predictions, _images(4), strict=True))

    def loss() -> Tensor:
        return pixel_losses(pairs, [(10.0, 0.0, 1.0)] * 4, (1.0, 1.0, 1.0, 3.0))[0]

    return Row("pixel_losses, 4 pairs", loss, _backward(loss(), predictions))


def _adversarial_losses() -> Row:
    """The outputs of two discriminators, for real and for generated images."""
    logits = [torch.zeros(1, 1, 32, 32, requires_grad=True) for _ in range(4)]

    def loss() -> Tensor:
        return adversarial_losses(logits, ["real", "fake"] * 2)[0]

    return Row("adversarial_losses, 4 outputs", loss, _backward(loss(), logits))


def _windowed_ssim() -> Row:
    """An SSIM of small images. It has no kernels of ours: the time is that of PyTorch's operations."""
    prediction, target = (torch.zeros(1, 1, 11, 11) for _ in range(2))
    prediction.requires_grad_()

    def loss() -> Tensor:
        return windowed_ssim(prediction, target)

    return Row("windowed_ssim", loss, _backward(loss(), [prediction]))


def _spectral_norm() -> Row:
    """Two discriminators of five convolutions."""
    model = nn.Sequential(*(spectral_norm(nn.Conv2d(8, 8, 3, bias=False)) for _ in range(10)))

    def step() -> list[Any]:
        with spectral_norm_step(model):
            return [layer.weight for layer in model]

    weights = step()
    parameters, grads = list(model.parameters()), [torch.zeros_like(weight) for weight in weights]
    return Row(
        "spectral_norm_step, 10 layers",
        step,
        lambda: torch.autograd.grad(weights, parameters, grads, retain_graph=True),
    )


def _nadam() -> Row:
    parameters = [nn.Parameter(torch.zeros(64)) for _ in range(100)]
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    return Row("NAdam.step, 100 parameters", NAdam(parameters, lr=2e-4).step)


def _backward(loss: Tensor, inputs: list[Tensor]) -> Call:
    return lambda: torch.autograd.grad(loss, inputs, retain_graph=True)


# ---- measuring ------------------------------------------------------------------------------------------------------


def seconds(call: Call, other: Call) -> tuple[float, float]:
    """The least time of each of two calls, which are timed in turn."""
    calls = (call, other)
    repeats = []
    for each in calls:
        for _ in range(20):
            each()
        began = time.perf_counter()
        each()
        repeats.append(max(1, round(1e-3 / (time.perf_counter() - began))))
    least = [float("inf")] * 2
    for _ in range(200):
        for i, each in enumerate(calls):
            began = time.perf_counter()
            for _ in range(repeats[i]):
                each()
            least[i] = min(least[i], (time.perf_counter() - began) / repeats[i])
    return least[0], least[1]


def in_additions(call: Call) -> float:
    """The time of a call, in small additions."""
    a, b = torch.zeros(64), torch.zeros(64)
    ours, addition = seconds(call, lambda: torch.add(a, b))
    return ours / addition


def counts(call: Call) -> dict[str, int]:
    """What one call does, once everything that is kept from call to call is there."""
    for _ in range(3):
        call()
    events: Counter[str] = Counter()
    before = Launcher.launches
    sys.setprofile(lambda frame, event, argument: events.update((event,)))
    try:
        call()
    finally:
        sys.setprofile(None)
    launches = Launcher.launches - before
    with torch.autograd.profiler.profile() as profiler:
        call()
    names = [event.name for event in profiler.function_events]
    return {
        "python": events["call"],
        "others": events["c_call"],
        "operations": sum(name.startswith(("aten::", "vologan_kernels::")) for name in names),
        "launches": launches,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", action="store_true", help="print the counts as JSON, and time nothing")
    only_counts = parser.parse_args().counts
    torch.set_num_threads(1)
    pretend_a_gpu()
    if only_counts:
        found = {
            row.name: {"forward": counts(row.forward)} | ({"backward": counts(row.backward)} if row.backward else {})
            for row in rows()
        }
        print(json.dumps(found, indent=1))
        return
    print(f"{'':64} {'additions':>9} {'Python':>7} {'others':>7} {'operations':>10} {'launches':>8}")
    start = 0.0  # of PyTorch's autograd: the first row's backward
    for row in rows():
        _print(f"{row.name}: forward" if row.backward else row.name, in_additions(row.forward), row.forward)
        if row.backward is None:
            continue
        cost = in_additions(row.backward)
        share = (in_additions(row.chain) - cost) / CHAIN if row.chain else cost - start
        start = start or cost
        _print(f"{row.name}: backward", share, row.backward)


def _print(name: str, additions: float, call: Call) -> None:
    found = counts(call)
    numbers = f"{found['python']:7} {found['others']:7} {found['operations']:10} {found['launches']:8}"
    print(f"{name:64} {additions:9.1f} {numbers}", flush=True)


if __name__ == "__main__":
    main()
