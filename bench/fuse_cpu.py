"""What `fuse` gains on a CPU: forward and backward of models of other projects, plain and fused.

    python bench/fuse_cpu.py [--threads N] [--turns N] [--only NAME …]

The first row is a CycleGAN generator, ResNet-9 of width 32, for one image of 256 × 256. The others are the small models
of `tests/kernels/foreign_gans.py`, two images of 16 × 16, where the overhead of a call counts most. Each is measured in
float32 and under bfloat16 autocast, contiguous and channels_last. Plain and fused model have the same precision and
layout, and run in turn. A number says how many times as long the plain model takes: the ratio of the lower quartiles,
which leave out the calls that others have interrupted.

Before a model is timed, its results are compared. Those of the fused one may err four times as much as those of the
plain one, against float64. Models without anything to fuse are left out. So are those that cannot run in a mode, as
"–".
"""

from __future__ import annotations

import argparse
import copy
import itertools
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from vologan_kernels import fuse

from vologan_fast.host import processor

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "kernels"))
import foreign_gans

RESNET_9 = "CycleGAN ResNet-9, width 32, 256²"
TURNS_OF_SMALL = 20
"""Small models have so many times as many turns. A turn is one call, as short as possible: a machine that others use
interrupts some of them, for longer than they take."""


class Mode(NamedTuple):
    dtype: torch.dtype
    layout: torch.memory_format

    def __str__(self) -> str:
        layout = "contiguous" if self.layout == torch.contiguous_format else "channels_last"
        return f"{str(self.dtype).removeprefix('torch.')}, {layout}"

    def of(self, value: Tensor) -> Tensor:
        return value.float().contiguous(memory_format=self.layout) if value.dim() == 4 else value.float()


MODES = [
    Mode(dtype, layout)
    for dtype in (torch.float32, torch.bfloat16)
    for layout in (torch.contiguous_format, torch.channels_last)
]


def resnet_9(width: int = 32) -> nn.Sequential:
    """The generator of Zhu et al., as their PyTorch code builds it."""
    norm = foreign_gans.get_norm_layer()
    layers = [nn.ReflectionPad2d(3), nn.Conv2d(3, width, 7), norm(width), nn.ReLU(True)]
    for channels in (width, 2 * width):
        layers += [nn.Conv2d(channels, 2 * channels, 3, 2, 1), norm(2 * channels), nn.ReLU(True)]
    layers += [foreign_gans.ResnetBlock(4 * width, foreign_gans.get_norm_layer()) for _ in range(9)]
    for channels in (4 * width, 2 * width):
        up = nn.ConvTranspose2d(channels, channels // 2, 3, 2, 1, output_padding=1)
        layers += [up, norm(channels // 2), nn.ReLU(True)]
    return nn.Sequential(*layers, nn.ReflectionPad2d(3), nn.Conv2d(width, 3, 7), nn.Tanh())


def made(name: str) -> tuple[nn.Module, list[Tensor]]:
    """Return a model in float64, and the arguments of a call."""
    if name != RESNET_9:
        return foreign_gans.make(name)
    torch.manual_seed(0)
    return resnet_9().double(), [foreign_gans.image(3, 256, 1)]


def outputs(model: nn.Module, arguments: Sequence[Tensor], mode: Mode | None = None) -> list[Tensor]:
    """Return the tensors that a call gives."""
    half = mode is not None and mode.dtype != torch.float32
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        return [leaf for leaf in tree_leaves(model(*arguments)) if isinstance(leaf, Tensor)]


class Pair(NamedTuple):
    """A call of the plain and of the fused model, each a forward and a backward."""

    plain: Callable[[], None]
    fused: Callable[[], None]


def pair(name: str, mode: Mode) -> Pair | None:
    """Return both calls, or None if nothing can be fused. Raises AssertionError if the results differ."""
    exact, arguments = made(name)
    plain = copy.deepcopy(exact).float().to(memory_format=mode.layout)  # type: ignore[call-overload]
    fused, report = fuse(copy.deepcopy(plain))
    if not report.fused:
        return None
    torch.manual_seed(0)
    truth = outputs(exact, arguments)
    inputs = [mode.of(argument) for argument in arguments]
    roundings, found = torch.finfo(mode.dtype).eps, []
    for model in (plain, fused):
        torch.manual_seed(0)  # for dropout
        found.append(outputs(model, inputs, mode))
    for expected, of_plain, of_fused in zip(truth, *found, strict=True):
        allowed = 4 * (of_plain - expected).abs().max() + 4 * roundings * expected.abs().max()
        assert (of_fused - expected).abs().max() <= allowed, f"{name}, {mode}: the fused model computes something else"

    def call(model: nn.Module) -> Callable[[], None]:
        def run() -> None:
            found = [value for value in outputs(model, inputs, mode) if value.requires_grad]
            torch.autograd.backward(found, [torch.ones_like(value) for value in found])

        return run

    return Pair(call(plain), call(fused))


def ratio(calls: Pair, turns: int) -> float:
    """Return the time of the plain model over the fused one's, both as lower quartiles. They run in turn."""
    for call in calls:
        call()
    seconds: dict[Callable[[], None], list[float]] = {call: [] for call in calls}
    for turn in range(turns):
        for call in calls if turn % 2 else reversed(calls):
            began = time.perf_counter()
            call()
            seconds[call].append(time.perf_counter() - began)
    plain, fused = (statistics.quantiles(seconds[call], n=4)[0] for call in calls)
    return plain / fused


def row(name: str, turns: int) -> list[str] | None:
    """Return a row of the table, or None if nothing can be fused."""
    cells = []
    for mode in MODES:
        try:
            calls = pair(name, mode)
        except (RuntimeError, TypeError) as error:
            print(f"{name}, {mode}: {' '.join(str(error).split())[:100]}", file=sys.stderr)
            cells.append("–")
            continue
        if calls is None:
            return None
        cells.append(f"{ratio(calls, turns):.2f} ×")
    return [name, *cells]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=15, help="turns of each side; small models have more")
    parser.add_argument("--only", nargs="+", default=[], help="names of models")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    warnings.filterwarnings("ignore")
    print(f"{processor()}, torch {torch.__version__}, threads: {arguments.threads}; the plain model takes\n")
    for line in (("model", *MODES), ["---"] * (1 + len(MODES))):
        print(f"| {' | '.join(map(str, line))} |")
    for name in itertools.chain([RESNET_9], foreign_gans.NETWORKS):
        if arguments.only and name not in arguments.only:
            continue
        cells = row(name, arguments.turns * (1 if name == RESNET_9 else TURNS_OF_SMALL))
        if cells is not None:
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
