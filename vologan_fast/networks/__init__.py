"""The networks: generators and discriminators by name, their blocks and initialisers.

Read `blocks.py`, `generator.py`, `unet.py` and `one_shot.py` first, then `registry.py`. `numerics.py` says in which
data type and memory format they compute. This package imports the kernels, and no losses.
"""

import copy
from typing import Literal

import torch
from torch import nn
from vologan_kernels import power_iteration

from vologan_fast.config import Config
from vologan_fast.networks import depth_gradient
from vologan_fast.networks.blocks import Convolution
from vologan_fast.networks.numerics import (
    FLOAT32,
    Numerics,
    choose,
    has_bfloat16_instructions,
    layout_by_device,
    numerics_of,
)
from vologan_fast.networks.one_shot import OneShotDiscriminator
from vologan_fast.networks.projector import PatchProjector
from vologan_fast.networks.registry import (
    DISCRIMINATORS,
    GENERATORS,
    build_discriminator,
    build_generator,
    generator_of,
)
from vologan_fast.networks.unet import UNet, UNetGenerator

__all__ = [
    "DISCRIMINATORS",
    "FLOAT32",
    "GENERATORS",
    "Networks",
    "Numerics",
    "OneShotDiscriminator",
    "UNetGenerator",
    "build_discriminator",
    "build_generator",
    "choose",
    "generator_of",
    "has_bfloat16_instructions",
    "layout_by_device",
    "numerics_of",
]


class Networks(nn.Module):
    """The networks of a run between S (synthetic) and T (real). `st` translates S to T, and `ts` T to S.

    A CycleGAN has two generators and two discriminators. The method `cut` has `generator_st`, `discriminator_t` and the
    `projector` of the generator's features.

    With `train.average`, there are also `average_st` and `average_ts`, moving averages of the generators' weights.
    Generator and discriminator circle around their equilibrium, and the average lies inside this circle (Yazıcı et al.,
    arXiv 1806.04498).
    """

    generator_st: nn.Module
    generator_ts: nn.Module
    discriminator_s: nn.Module
    discriminator_t: nn.Module
    projector: PatchProjector

    def __init__(self, config: Config) -> None:
        super().__init__()
        directions: tuple[Literal["st", "ts"], ...] = ("st", "ts") if config.train.method == "cyclegan" else ("st",)
        domains = {"cyclegan": ("s", "t"), "cut": ("t",)}[config.train.method]
        sets = config.data.channel_sets.values()
        gradients = depth_gradient.CHANNELS if config.discriminator.depth_gradient else 0
        seen = {name: channels.number + gradients * channels.depth for name, channels in zip("st", sets, strict=True)}
        self.have_identity = len(set(sets)) == 1
        """Whether a generator can take images of its output domain: both domains have the same channels."""
        for direction in directions:
            generator = generator_of(config, direction)
            if isinstance(generator, UNet):
                generator.recompute = config.train.recompute
            self.add_module(f"generator_{direction}", generator)
        for domain in domains:
            self.add_module(f"discriminator_{domain}", build_discriminator(config.discriminator, seen[domain]))
        if config.train.method == "cut":
            self.projector = PatchProjector(generator.feature_widths, config.contrast.width)
        for module in self.modules():
            if isinstance(module, Convolution):
                module.split_kernel, module.pad_channels = config.train.split_kernels, config.train.pad_channels
        self.decay = config.train.average
        if self.decay:
            for direction in directions:
                average = copy.deepcopy(self.get_submodule(f"generator_{direction}"))
                self.add_module(f"average_{direction}", average.requires_grad_(False))

    @property
    def generators(self) -> nn.ModuleList:
        """The generators that learn, S to T first, as one module without own state."""
        return self._of("generator_")

    @property
    def discriminators(self) -> nn.ModuleList:
        """The discriminators, as one module without own state."""
        return self._of("discriminator_")

    @property
    def optimized(self) -> dict[str, nn.ModuleList]:
        """The networks that each of the two optimisers trains, by its name."""
        return {
            "generator": nn.ModuleList([*self.generators, *self._of("projector")]),
            "discriminator": self.discriminators,
        }

    @property
    def learning(self) -> nn.ModuleList:
        """All networks that are trained."""
        return nn.ModuleList([network for networks in self.optimized.values() for network in networks])

    @property
    def translators(self) -> nn.ModuleList:
        """The networks that translate outside training, S to T first.

        They are the averages if there are any, else the generators.
        """
        return self._of("average_") if self.decay else self.generators

    def _of(self, beginning: str) -> nn.ModuleList:
        return nn.ModuleList(module for name, module in self.named_children() if name.startswith(beginning))

    @torch.no_grad()
    def update_averages(self, step: int) -> None:
        """Move the averages towards the generators after optimisation step `step`. Step 0 makes them equal.

        The decay is min(`train.average`, step / (9 + step)), so the first steps lose their weight soon. Layers with
        spectral norm have their own u and v in the averages. One power iteration keeps them close to the new weights.
        The running statistics of batch norms are averages already, and are copied.
        """
        if self.decay:
            decay = min(self.decay, step / (9 + step))
            torch._foreach_lerp_(list(self.translators.parameters()), list(self.generators.parameters()), 1 - decay)
            power_iteration(self.translators)
            for average, network in zip(self.translators.modules(), self.generators.modules(), strict=True):
                if isinstance(network, nn.BatchNorm2d):
                    for copied, statistic in zip(average.buffers(), network.buffers(), strict=True):
                        copied.copy_(statistic)
