"""What a run costs on a GPU that is not at hand: modelled time and memory of a step, beside eager and compiled code.

A step is counted on meta tensors (`step_counts`). Then each of its parts gets a time:

- *convolutions*: for each, the longer of two times. One is for its FLOP at a share of the peak (`Assumptions`), the
  other for its bytes;
- *norms*: ours by `launch_model`, with what is counted in the machine code. Those of eager by the bytes of their
  operations. Those of torch.compile by Inductor's own count of its kernels' bytes (bench/static_cost/count_bytes.py):
  6 passes over the tensor, and 4 over what is padded, in 4 and 2 launches;
- *losses*, *spectral norm*, *optimisers* and the *rest* (sums of gradients, dropout, joins): by the bytes of their
  operations. torch.compile fuses the small operations of torch's spectral norm: two launches are left for each product;
- every launch: the time between two kernels.

The host launches while the GPU computes. So a step takes the longer of both times. Steps of eager code pay more for
each launch than compiled ones. A CUDA graph pays nothing.

The time is a range. `LIKELY` is in the middle, `FAST` and `SLOW` have the assumptions that make all of a step faster or
slower. The choice of these numbers is a judgement, and no measurement. Left out: loading data, validation, checkpoints,
compiling, and several GPUs.

Memory is what autograd keeps at its peak, and parameters, gradients, averages and the optimisers' state. Tensors that
live during one operation only, workspaces of cuDNN, and gaps in the allocator's memory come on top: `Assumptions` has a
share for them.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass
from typing import Literal

import torch

from vologan_fast.config import Config
from vologan_fast.data.sampling import held_out_count
from vologan_fast.networks import numerics_of
from vologan_fast.profiling.compiled import compiled
from vologan_fast.profiling.gpus import Gpu
from vologan_fast.profiling.launch_model import START
from vologan_fast.profiling.launches import cut_for
from vologan_fast.profiling.norm_work import time_of
from vologan_fast.profiling.step_counts import (
    CONVOLUTION,
    KERNELS,
    LOSSES,
    NORM,
    OPTIMIZERS,
    REST,
    SPECTRAL_NORM,
    Counted,
    Operation,
    count,
)

Side = Literal["ours", "compile", "eager"]
SIDES: tuple[Side, ...] = ("ours", "compile", "eager")
PARTS = (CONVOLUTION, NORM, LOSSES, SPECTRAL_NORM, OPTIMIZERS, REST)
COMPILED_PASSES, COMPILED_LAUNCHES = 6, 4
"""Passes over its tensor, and launches, of a norm by torch.compile, forward and backward."""
PAD_PASSES, PAD_LAUNCHES = 4, 2
"""What a padding after it adds."""
_GPU = torch.device("cuda")


@dataclass(frozen=True)
class Assumptions:
    """What no counting tells."""

    convolution: float
    """Share of the peak FLOP/s that convolutions reach. Large convolutions of cuDNN in bfloat16 reach about 0.7 on an
    A100. On newer GPUs and for few channels it is less."""
    streaming: float
    """Share of a large copy's rate that other kernels reach."""
    norms: float
    """Factor for the modelled time of our norms."""
    gap: float
    """Factor for the time between two kernels."""
    host: float
    """Seconds in which the host launches one operation of eager PyTorch."""
    host_compiled: float
    """The same for compiled code."""
    memory: float
    """Factor for the counted memory."""


FAST = Assumptions(0.65, 0.9, 0.8, 0.4, 4e-6, 2e-6, 1.0)
LIKELY = Assumptions(0.5, 0.8, 1.0, 1.0, 6e-6, 3e-6, 1.15)
SLOW = Assumptions(0.35, 0.7, 1.5, 1.6, 10e-6, 6e-6, 1.4)


@dataclass(frozen=True)
class Cost:
    """The modelled cost of a step."""

    parts: dict[str, float]
    """Part → seconds on the GPU."""
    launches: int
    host: float
    """Seconds in which the host launches the step."""
    memory: float
    """Bytes at the peak."""

    @property
    def gpu(self) -> float:
        """Seconds of the GPU."""
        return sum(self.parts.values())

    @property
    def seconds(self) -> float:
        """The longer one of the times of GPU and host."""
        return max(self.gpu, self.host)


@dataclass(frozen=True)
class Estimate:
    """The cost of a side in the likely case, and at both ends of its range."""

    likely: Cost
    fast: Cost
    slow: Cost

    @property
    def range(self) -> tuple[Cost, Cost, Cost]:
        return self.likely, self.fast, self.slow


def estimate(config: Config, gpu: Gpu) -> dict[Side, Estimate]:
    """Model a step of a configuration on a GPU, for each of `SIDES`.

    *Ours* is the step that the configuration describes. The others are the plain step over plain networks, with all
    images of a batch at once, as in GAN code today. All run in the precision that the configuration has on a GPU.
    """
    precision = numerics_of(config, _GPU).dtype
    plain = dataclasses.replace(config.train, step="plain", micro_batch=0, recompute=0)
    with cut_for(gpu.multiprocessors):
        ours = count("ours", config, precision)
    eager = count("eager", dataclasses.replace(config, train=plain), precision)

    def range_of(side: Side) -> Estimate:
        counted = ours if side == "ours" else eager
        return Estimate(*(_cost(side, counted, config, gpu, assumed) for assumed in (LIKELY, FAST, SLOW)))

    return {side: range_of(side) for side in SIDES}


def device_memory(config: Config, multiprocessors: int) -> tuple[float, float, float]:
    """Return the modelled bytes at the peak of a step on a GPU: in the likely case, the least and the most."""
    with cut_for(multiprocessors):
        counted = count("ours", config, numerics_of(config, _GPU).dtype)
    needed = counted.kept + counted.constant
    return LIKELY.memory * needed, FAST.memory * needed, SLOW.memory * needed


def steps_of_run(config: Config, images: int) -> int:
    """The steps of a run, if the longer domain has `images` ≥ 2 images. A part of them is held out."""
    training = images - held_out_count(images, config.data.held_out)
    return config.schedule.epochs * -(-training // config.train.batch)


def _cost(side: Side, counted: Counted, config: Config, gpu: Gpu, assumed: Assumptions) -> Cost:
    between = assumed.gap * (gpu.gap + START)
    reduced = numerics_of(config, _GPU).dtype == torch.bfloat16
    peak = getattr(gpu, "bfloat16" if reduced else config.train.precision)
    seconds, launches = dict.fromkeys(PARTS, 0.0), Counter[str]()

    def add(part: str, flop: float, moved: float, number: int) -> None:
        arithmetic = flop / (assumed.convolution * peak)
        seconds[part] += max(arithmetic, moved / (assumed.streaming * gpu.copy)) + number * between
        launches[part] += number

    for operation in counted.accounting.operations:
        part = _part(operation)
        if side == "compile" and part == NORM:
            if operation.name == "aten::native_batch_norm":  # which reads the tensor twice and writes it
                add(part, 0, COMPILED_PASSES * operation.bytes / 3, COMPILED_LAUNCHES)
            elif operation.name == "aten::reflection_pad2d":  # reads it and writes a larger one
                add(part, 0, PAD_PASSES * operation.bytes / 2, PAD_LAUNCHES)
        elif side == "compile" and part == SPECTRAL_NORM:
            add(part, 0, operation.bytes, 2 if operation.name == "aten::mv" else 0)
        elif part == CONVOLUTION and "backward" in operation.name:  # the gradients of the input and of the weight
            add(part, operation.flop, operation.bytes, 2)
        elif side == "ours" and part == OPTIMIZERS:  # whose kernels find their tensors by tables of addresses
            add(part, 0, 0, operation.launches)
        elif not (side == "ours" and part == NORM and operation.name.startswith("vologan_kernels")):
            add(part, operation.flop, operation.bytes, operation.launches)
    if side == "ours":
        add(OPTIMIZERS, 0, counted.optimized * counted.steps, 0)
    for launch in counted.launches:
        part = KERNELS[launch.kernel.fn.__module__]
        launches[part] += 1
        if part == NORM:
            seconds[part] += assumed.norms * (time_of([launch], compiled, gpu) - gpu.gap - START) + between
        else:
            seconds[part] += between
    steps, number = counted.steps, launches.total()
    graph = side == "ours" and config.train.cuda_graph
    per_launch = 0.0 if graph else assumed.host if side == "eager" else assumed.host_compiled
    return Cost(
        {part: time / steps for part, time in seconds.items()},
        launches=round(number / steps),
        host=number * per_launch / steps,
        memory=assumed.memory * (counted.kept + counted.constant),
    )


def _part(operation: Operation) -> str:
    if operation.name.startswith("aten::reflection_pad"):
        return NORM
    return operation.part if operation.part in PARTS else REST
