"""Build the objects of a configuration on a device: networks, optimisers, and the step that trains them."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch.optim import Optimizer

from vologan_fast.config import Config, LossConfig
from vologan_fast.networks import FLOAT32, Networks, Numerics, numerics_of
from vologan_fast.training.allocator import keep_freed_memory
from vologan_fast.training.capture import CapturedStep
from vologan_fast.training.compilation import compile_mode
from vologan_fast.training.contrastive_step import FastContrastiveStep, PlainContrastiveStep
from vologan_fast.training.cycle_step import PlainStep
from vologan_fast.training.fast_step import FastStep
from vologan_fast.training.optimizers import build_optimizer
from vologan_fast.training.step import Reducer, TrainingStep

Step = TrainingStep | CapturedStep


def build_training(
    config: Config, device: torch.device, *, first_sample: int = 0, reducer: Reducer | None = None
) -> tuple[Networks, dict[str, Optimizer], Step]:
    """Return new networks, the optimisers "generator" and "discriminator", and the step.

    `first_sample` and `reducer` are for runs with several processes: see `TrainingStep`.
    """
    set_up_device(device, config.train.precision)
    torch.manual_seed(config.train.seed)
    networks, numerics = Networks(config), numerics_of(config, device)
    networks.to(device=device, memory_format=numerics.layout)  # type: ignore[call-overload]
    networks_of = networks.optimized
    generator = build_optimizer(networks_of["generator"].parameters(), config.generator_optimizer, numerics.dtype)
    discriminator = build_optimizer(
        networks_of["discriminator"].parameters(), config.discriminator_optimizer, numerics.dtype
    )
    step = build_step(config, networks, generator, discriminator, numerics, first_sample=first_sample, reducer=reducer)
    return networks, {"generator": generator, "discriminator": discriminator}, step


def build_step(
    config: Config,
    networks: Networks,
    generator_optimizer: Optimizer,
    discriminator_optimizer: Optimizer,
    numerics: Numerics = FLOAT32,
    *,
    first_sample: int = 0,
    reducer: Reducer | None = None,
) -> Step:
    """Return the step that `config.train` describes. It computes in `numerics`. The networks have its layout."""
    arguments = networks, generator_optimizer, discriminator_optimizer, _losses(config), numerics
    device = next(networks.parameters()).device
    options: dict[str, Any] = {
        "seed": config.train.seed,
        "first_sample": first_sample,
        "reducer": reducer,
        "skips_bad": config.train.on_nan == "skip",
        "compile": compile_mode(config.train.compile, device),
        "colour_channels": tuple(channels.color for channels in config.data.channel_sets.values()),
    }
    plain, fast = {"cyclegan": (PlainStep, FastStep), "cut": (PlainContrastiveStep, FastContrastiveStep)}[
        config.train.method
    ]
    if config.train.method == "cut":
        options["contrast"] = config.contrast
    if config.train.step == "plain":
        step: TrainingStep = plain(*arguments, **options)
    else:
        step = fast(*arguments, micro_batch=config.train.micro_batch, **options)
    return CapturedStep(step) if config.train.cuda_graph and device.type == "cuda" and reducer is None else step


def with_ramp(config: Config) -> LossConfig:
    """Return the settings of the losses with the length of CutMix's ramp. Its default is the warm-up."""
    if config.loss.cutmix_ramp is not None:
        return config.loss
    warmup = min(config.schedule.warmup_epochs / config.schedule.epochs, 1.0)
    return dataclasses.replace(config.loss, cutmix_ramp=warmup)


def _losses(config: Config) -> LossConfig:
    """Return the settings of the losses without open ones.

    The channels' weights stay open if the domains have different channels.
    """
    losses, (synthetic, real) = with_ramp(config), config.data.channel_sets.values()
    if losses.channel_weights or synthetic != real:
        return losses
    return dataclasses.replace(losses, channel_weights=synthetic.weights)


_CUDNN_PLANS = 10
"""How many of cuDNN's plans for a convolution are timed. cuDNN sorts them by their expected time. 10 is the default of
torch, where 0 means all. torch has this limit because the first step takes very long without it, and most of the plans
need not be timed (pytorch/pytorch#74881)."""


def set_up_device(device: torch.device, precision: str) -> None:
    """Set what holds for the whole process. `precision` is the setting `train.precision`.

    On the CPU, freed memory is kept for the next step. On a GPU, cuDNN times its plans when a convolution has a new
    shape, and float32 products use TensorFloat-32 with "tf32".
    """
    if device.type == "cpu":
        keep_freed_memory()
    if device.type == "cuda":
        torch.backends.cudnn.benchmark, torch.backends.cudnn.benchmark_limit = True, _CUDNN_PLANS
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
