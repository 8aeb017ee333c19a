"""The training steps that the benchmarks compare. Networks, weights, losses and optimisers are the same.

- *eager fp32*: `PlainStep` as in today's GAN code (`plain_networks.py`), with torch's optimisers, and with each loss
  term computed by itself. It runs in float32 with torch's default precision (on a GPU, convolutions in TF32).
- *eager bf16*: the same under bfloat16 autocast, in channels_last.
- *compile*: the same with compiled networks, in the precision and layout of *ours*. *compile, max-autotune* is the same
  with that mode of torch.compile, which takes minutes.
- *ours*: the step that `build_step` makes from the configuration: `FastStep`, and on a GPU bfloat16 and torch.compile.
- *ours, not compiled*: the same with `--train.compile none`.
- *ours, CUDA graph*: the same with `--train.compile none --train.cuda-graph`.

The last two and *compile, max-autotune* run only on a GPU. The sides that compile come last.

On a GPU, cuDNN times its plans for all of them, as `set_up_device` says for training.

All run without dropout. Today's GAN code would draw other masks, so the losses could not be compared.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from vologan_kernels import power_iteration

from vologan_fast.config import PRESETS, Config
from vologan_fast.networks import Networks, memory_format
from vologan_fast.profiling.plain_losses import plain_adversarial_losses, plain_pixel_losses
from vologan_fast.profiling.plain_networks import plain_networks
from vologan_fast.training import losses, step
from vologan_fast.training.build import Step, build_step, set_up_device
from vologan_fast.training.cycle_step import PlainStep
from vologan_fast.training.losses import StepLosses
from vologan_fast.training.optimizers import build_optimizer

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
PRECISION = torch.bfloat16 if ON_GPU else torch.float32
"""Precision of the side "ours", as with `train.precision` auto."""


def _mode(name: str) -> str:
    """A mode of torch.compile. A rehearsal (`on_gpu.sh --rehearse`) does not compile, because that takes minutes."""
    return "none" if os.environ.get("VOLOGAN_REHEARSAL") == "1" else name


@dataclass(frozen=True)
class Side:
    precision: torch.dtype
    layout: torch.memory_format
    compile: str = "none"
    """Mode of torch.compile, for a side that is not ours."""
    train: Mapping[str, Any] | None = None
    """Settings of `TrainConfig`, for a side that is ours."""
    needs_gpu: bool = False


def _ours(**train: Any) -> Side:
    return Side(PRECISION, memory_format(DEVICE), train=train, needs_gpu=bool(train))


SIDES = {
    "ours, not compiled": _ours(compile="none"),
    "eager bf16": Side(torch.bfloat16, torch.channels_last),
    "eager fp32": Side(torch.float32, torch.contiguous_format),
    "ours, CUDA graph": _ours(compile="none", cuda_graph=True),
    "ours": _ours(),
    "compile": Side(PRECISION, memory_format(DEVICE), _mode("default")),
    "compile, max-autotune": Side(PRECISION, memory_format(DEVICE), _mode("max-autotune"), needs_gpu=True),
}


@contextmanager
def tf32_convolutions() -> Iterator[None]:
    """Let float32 convolutions use TensorFloat-32. This is torch's default, which `set_up_device` changes."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = True
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


class TodaysStep(PlainStep):
    """The plain step with plain losses, in the memory layout of a side."""

    layout = torch.contiguous_format

    def __call__(self, synthetic: Tensor, real: Tensor, number: int) -> StepLosses:
        with (
            mock.patch.object(losses, "pixel_losses", plain_pixel_losses),
            mock.patch.object(losses, "adversarial_losses", plain_adversarial_losses),
            mock.patch.object(step, "memory_format", lambda device: self.layout),
            tf32_convolutions(),
        ):
            return super().__call__(synthetic, real, number)


def configuration(preset: str, width: int | None = None) -> Config:
    """Return a preset without dropout.

    `width` is the number of channels in the networks' first levels, if the published number is too large for the
    machine.
    """
    config = PRESETS[preset]
    generator = dataclasses.replace(config.generator, dropout=0.0)
    discriminator = dataclasses.replace(config.discriminator, dropout=0.0)
    if width is not None:
        generator = dataclasses.replace(generator, width=width, max_width=4 * width)
        discriminator = dataclasses.replace(discriminator, widths=(width, 2 * width, 4 * width))
    return dataclasses.replace(config, generator=generator, discriminator=discriminator)


def first_state(config: Config) -> dict[str, Tensor]:
    """Return the state of networks whose spectral norms have converged.

    torch's spectral norm iterates in every forward, and the one of vologan_kernels once per step. Without convergence,
    the two would give different σ.
    """
    torch.manual_seed(0)
    with DEVICE:
        networks = Networks(config)
    for _ in range(200):
        power_iteration(networks)
    return networks.state_dict()


def make_step(name: str, config: Config, state: dict[str, Tensor], **train: Any) -> Step:
    """Return a side's step, which starts from `state`. `train`: more settings of `TrainConfig`, for sides of ours."""
    side = SIDES[name]
    set_up_device(DEVICE, config.train.precision)
    with DEVICE:
        networks = plain_networks(config) if side.train is None else Networks(config)
    networks.load_state_dict(state)
    networks.to(memory_format=side.layout)  # type: ignore[call-overload]
    generators, discriminators = networks.generators.parameters(), networks.discriminators.parameters()
    nadam, sgd = config.generator_optimizer, config.discriminator_optimizer
    assert (nadam.kind, sgd.kind) == ("nadam", "sgd")
    if side.train is not None:
        settings = dataclasses.replace(config.train, **{**side.train, **train})
        optimizers = build_optimizer(generators, nadam), build_optimizer(discriminators, sgd)
        return build_step(dataclasses.replace(config, train=settings), networks, *optimizers, side.precision)
    made = TodaysStep(
        networks,
        torch.optim.NAdam(generators, nadam.learning_rate, (nadam.beta1, nadam.beta2), nadam.epsilon),
        torch.optim.SGD(discriminators, sgd.learning_rate, sgd.momentum),
        config.loss,
        side.precision,
        seed=config.train.seed,
        compile=side.compile,
    )
    made.layout = side.layout
    return made


def images(config: Config, batch: int) -> tuple[Tensor, Tensor]:
    """Return a batch of smooth, different random images for each domain."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(2 * batch, 4, 8, 8, generator=generator)
    size = config.data.shape
    smooth = torch.nn.functional.interpolate(coarse, size, mode="bicubic").clamp(0, 1).to(DEVICE)
    return smooth[:batch], smooth[batch:]
