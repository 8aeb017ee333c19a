"""The training steps that the benchmarks here compare: the same networks, weights, losses and optimisers, four ways.

- *eager fp32*, *eager bf16*: `PlainStep` as GAN code has it today (`plain_networks.py`), with torch's optimisers, and
  each loss term by term; in float32 as torch ships it (on a GPU, convolutions in TF32), and under autocast in
  channels_last;
- *compile*: the same with its networks compiled, on a GPU with max-autotune and in the precision and layout of ours;
- *ours*: what `build_step` makes of the configuration: `FastStep`, and on a GPU bfloat16 and torch.compile.

All without dropout: GAN code of today would draw other masks, and no losses could be compared.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from count_launches import plain_adversarial_losses, plain_pixel_losses
from plain_networks import plain_networks
from torch import Tensor
from vologan_kernels import power_iteration

from vologan_fast.config import PRESETS, Config
from vologan_fast.networks import Networks, memory_format
from vologan_fast.training import losses, step
from vologan_fast.training.build import build_step
from vologan_fast.training.losses import StepLosses
from vologan_fast.training.optimizers import build_optimizer

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
PRECISION = torch.bfloat16 if ON_GPU else torch.float32
"""Of ours, as `train.precision` auto has it."""


@dataclass(frozen=True)
class Side:
    precision: torch.dtype
    layout: torch.memory_format
    compile: str = "none"


SIDES = {
    "eager fp32": Side(torch.float32, torch.contiguous_format),
    "eager bf16": Side(torch.bfloat16, torch.channels_last),
    "compile": Side(PRECISION, memory_format(DEVICE), "max-autotune" if ON_GPU else "default"),
    "ours": Side(PRECISION, memory_format(DEVICE)),
}


class TodaysStep(step.PlainStep):
    """The plain step with plain losses, in the layout of a side."""

    layout = torch.contiguous_format

    def __call__(self, synthetic: Tensor, real: Tensor, number: int) -> StepLosses:
        with (
            mock.patch.object(losses, "pixel_losses", plain_pixel_losses),
            mock.patch.object(losses, "adversarial_losses", plain_adversarial_losses),
            mock.patch.object(step, "memory_format", lambda device: self.layout),
        ):
            return super().__call__(synthetic, real, number)


def configuration(preset: str, width: int | None = None) -> Config:
    """`width`: of the networks' first levels, where the published ones are too large for the machine."""
    config = PRESETS[preset]
    generator = dataclasses.replace(config.generator, dropout=0.0)
    discriminator = dataclasses.replace(config.discriminator, dropout=0.0)
    if width is not None:
        generator = dataclasses.replace(generator, width=width, max_width=4 * width)
        discriminator = dataclasses.replace(discriminator, widths=(width, 2 * width, 4 * width))
    return dataclasses.replace(config, generator=generator, discriminator=discriminator)


def first_state(config: Config) -> dict[str, Tensor]:
    """Of networks whose spectral norms have converged.

    torch's iterates in every forward, ours once a step: from other vectors they would reach another σ.
    """
    torch.manual_seed(0)
    with DEVICE:
        networks = Networks(config)
    for _ in range(200):
        power_iteration(networks)
    return networks.state_dict()


def make_step(name: str, config: Config, state: dict[str, Tensor], **train: Any) -> step.TrainingStep:
    """A side's step, from `state`; `train`: settings of ours."""
    side = SIDES[name]
    with DEVICE:
        networks = Networks(config) if name == "ours" else plain_networks(config)
    networks.load_state_dict(state)
    networks.to(memory_format=side.layout)  # type: ignore[call-overload]
    generators, discriminators = networks.generators.parameters(), networks.discriminators.parameters()
    nadam, sgd = config.generator_optimizer, config.discriminator_optimizer
    assert (nadam.kind, sgd.kind) == ("nadam", "sgd")
    if name == "ours":
        config = dataclasses.replace(config, train=dataclasses.replace(config.train, **train))
        optimizers = build_optimizer(generators, nadam), build_optimizer(discriminators, sgd)
        return build_step(config, networks, *optimizers, side.precision)
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
    """Smooth ones, unlike each other, of both domains."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(2 * batch, 4, 8, 8, generator=generator)
    size = (config.data.size, config.data.size)
    smooth = torch.nn.functional.interpolate(coarse, size, mode="bicubic").clamp(0, 1).to(DEVICE)
    return smooth[:batch], smooth[batch:]
