"""The training steps that the benchmarks compare. Networks, weights, losses and optimisers are the same.

- *eager fp32*: `PlainStep` as in today's GAN code (`plain_networks.py`), with torch's optimisers, and with each loss
  term computed by itself. It runs in float32 with torch's default precision (on a GPU, convolutions in TF32).
- *eager bf16*: the same under bfloat16 autocast, in channels_last.
- *compile*: the same with compiled networks, in the precision and layout of *ours*. *compile, max-autotune* is the same
  with that mode of torch.compile, which takes minutes.
- *ours*: the step that `build_step` makes from the configuration: `FastStep`, in the precision and layout that `auto`
  chooses here, and compiled on a GPU.
- *ours, not compiled*: the same with `--train.compile none`.
- *ours, CUDA graph*: the same with `--train.compile none --train.cuda-graph`.

The last two and *compile, max-autotune* run only on a GPU. The sides that compile come last. `CPU_SIDES`, for
`cpu_table.py`, has *compile* and *ours* in each precision and layout.

On a GPU, cuDNN times its plans for all of them, as `set_up_device` says for training.

All run without dropout, and without averaged weights. Today's GAN code would draw other masks, so the losses could not
be compared.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from vologan_kernels import power_iteration

from vologan_fast.config import PRESETS, Config, OptimizerConfig
from vologan_fast.networks import FLOAT32, Networks, Numerics, numerics_of
from vologan_fast.profiling.plain_losses import plain_adversarial_losses, plain_pixel_losses
from vologan_fast.profiling.plain_networks import plain_networks
from vologan_fast.profiling.saved_tensors import SavedTensors
from vologan_fast.training import losses
from vologan_fast.training.build import Step, build_step, set_up_device
from vologan_fast.training.cycle_step import PlainStep
from vologan_fast.training.losses import StepLosses
from vologan_fast.training.optimizers import build_optimizer

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
NUMERICS = numerics_of(Config(), DEVICE)
"""Precision and layout of the side "ours": those that `auto` chooses here."""
TOLERANCE = {torch.float32: (1e-5, 1e-2), torch.bfloat16: (1e-2, 5e-2)}
"""Relative tolerance of a loss in the first step, and in the later steps. It is larger in the later ones: Adam's first
step uses only the signs of the gradients, so a rounding error counts as much as a gradient."""

Batch = tuple[Tensor, Tensor]


def _mode(name: str) -> str:
    """A mode of torch.compile. A rehearsal (`on_gpu.sh --rehearse`) does not compile, because that takes minutes."""
    return "none" if os.environ.get("VOLOGAN_REHEARSAL") == "1" else name


@dataclass(frozen=True)
class Side:
    numerics: Numerics
    compile: str = "none"
    """Mode of torch.compile, for a side that is not ours."""
    train: Mapping[str, Any] | None = None
    """Settings of `TrainConfig`, for a side that is ours."""
    needs_gpu: bool = False


def _ours(**train: Any) -> Side:
    return Side(NUMERICS, train=train, needs_gpu=bool(train))


SIDES = {
    "ours, not compiled": _ours(compile="none"),
    "eager bf16": Side(Numerics(torch.bfloat16, torch.channels_last)),
    "eager fp32": Side(FLOAT32),
    "ours, CUDA graph": _ours(compile="none", cuda_graph=True),
    "ours": _ours(),
    "compile": Side(NUMERICS, _mode("default")),
    "compile, max-autotune": Side(NUMERICS, _mode("max-autotune"), needs_gpu=True),
}
EACH = [Numerics(dtype, layout) for dtype in TOLERANCE for layout in (torch.contiguous_format, torch.channels_last)]
CPU_SIDES = {
    "eager fp32": SIDES["eager fp32"],
    **{f"ours, {numerics}": Side(numerics, train={"compile": "none"}) for numerics in EACH},
    **{f"compile, {numerics}": Side(numerics, "default") for numerics in EACH},
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
    """The plain step with plain losses."""

    def __call__(self, synthetic: Tensor, real: Tensor, number: int) -> StepLosses:
        with (
            mock.patch.object(losses, "pixel_losses", plain_pixel_losses),
            mock.patch.object(losses, "adversarial_losses", plain_adversarial_losses),
            tf32_convolutions(),
        ):
            return super().__call__(synthetic, real, number)


def configuration(preset: str, width: int | None = None) -> Config:
    """Return a preset without dropout and averaged weights.

    `width` is the number of channels in the networks' first levels, if the published number is too large for the
    machine.
    """
    config = PRESETS[preset]
    generator = dataclasses.replace(config.generator, dropout=0.0)
    discriminator = dataclasses.replace(config.discriminator, dropout=0.0)
    if width is not None:
        generator = dataclasses.replace(generator, width=width, max_width=4 * width)
        discriminator = dataclasses.replace(discriminator, widths=(width, 2 * width, 4 * width))
    train = dataclasses.replace(config.train, average=0.0)
    return dataclasses.replace(config, generator=generator, discriminator=discriminator, train=train)


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


def make_step(side: Side, config: Config, state: dict[str, Tensor], **train: Any) -> Step:
    """Return a side's step, which starts from `state`. `train`: more settings of `TrainConfig`, for sides of ours."""
    if ON_GPU or side.train is not None:  # on a CPU it changes how memory is allocated, as GAN code does not
        set_up_device(DEVICE, config.train.precision)
    with DEVICE:
        networks = plain_networks(config) if side.train is None else Networks(config)
    networks.load_state_dict(state)
    networks.to(memory_format=side.numerics.layout)  # type: ignore[call-overload]

    def make(parameters: Iterable[nn.Parameter], of: OptimizerConfig) -> torch.optim.Optimizer:
        if side.train is None:
            return plain_optimizer(parameters, of)
        return build_optimizer(parameters, of, side.numerics.dtype)

    optimizers = (
        make(networks.generators.parameters(), config.generator_optimizer),
        make(networks.discriminators.parameters(), config.discriminator_optimizer),
    )
    if side.train is not None:
        settings = dataclasses.replace(config.train, **{**side.train, **train})
        return build_step(dataclasses.replace(config, train=settings), networks, *optimizers, side.numerics)
    return TodaysStep(networks, *optimizers, config.loss, side.numerics, seed=config.train.seed, compile=side.compile)


def plain_optimizer(parameters: Iterable[nn.Parameter], config: OptimizerConfig) -> torch.optim.Optimizer:
    """Return torch's optimiser, as GAN code makes it."""
    rate, betas = config.learning_rate, (config.beta1, config.beta2)
    match config.kind:
        case "adam":
            return torch.optim.Adam(parameters, rate, betas, config.epsilon)
        case "nadam":
            return torch.optim.NAdam(parameters, rate, betas, config.epsilon)
        case "sgd":
            return torch.optim.SGD(parameters, rate, config.momentum)
    raise ValueError(f"config.kind is {config.kind}: expected adam, nadam or sgd")


def losses_of(step: Any, pair: Batch, number: int) -> list[float]:
    """Return the losses of the four networks in a step."""
    terms = step(*pair, number).terms()
    return [float(value) for name, value in terms.items() if name.endswith("/total")]


def kept_bytes(step: Any, pair: Batch, number: int) -> int:
    """Return the most bytes that autograd keeps for the backward in a step. Parameters do not count."""
    step.networks.zero_grad(set_to_none=True)
    kept = SavedTensors(step.networks)
    with kept.counted():
        step(*pair, number)
    return kept.peak


def images(config: Config, batch: int) -> tuple[Tensor, Tensor]:
    """Return a batch of smooth, different random images for each domain."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(2 * batch, 4, 8, 8, generator=generator)
    size = config.data.shape
    smooth = torch.nn.functional.interpolate(coarse, size, mode="bicubic").clamp(0, 1).to(DEVICE)
    return smooth[:batch], smooth[batch:]
