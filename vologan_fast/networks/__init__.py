"""The networks: generators and discriminators by name, their blocks and initialisers.

Read `blocks.py`, `generator.py` and `discriminator.py` first, then `registry.py`. This package imports the kernels, and
no losses.
"""

import copy

import torch
from torch import nn
from vologan_kernels import power_iteration

from vologan_fast.config import Config
from vologan_fast.networks.blocks import Convolution
from vologan_fast.networks.discriminator import OneShotDiscriminator
from vologan_fast.networks.generator import UNet, UNetGenerator
from vologan_fast.networks.registry import DISCRIMINATORS, GENERATORS, build_discriminator, build_generator

__all__ = [
    "DISCRIMINATORS",
    "GENERATORS",
    "Networks",
    "OneShotDiscriminator",
    "UNetGenerator",
    "build_discriminator",
    "build_generator",
    "memory_format",
]


def memory_format(device: torch.device) -> torch.memory_format:
    """Return the memory format for the networks: channels_last on a GPU, where the tensor cores need it.

    On the CPU it is contiguous, because group norm is several times faster then. A `demo` step takes 0.40 s, and in
    channels_last 0.52 s (one EPYC core, batch 4, torch 2.13).
    """
    return torch.channels_last if device.type == "cuda" else torch.contiguous_format


class Networks(nn.Module):
    """The four networks of a CycleGAN between S (synthetic) and T (real). `st` translates S to T, and `ts` T to S.

    With `train.average`, there are also `average_st` and `average_ts`, moving averages of the generators' weights.
    Generator and discriminator circle around their equilibrium, and the average lies inside this circle (Yazıcı et al.,
    arXiv 1806.04498).
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.generator_st = build_generator(config.generator, height=config.data.size)
        self.generator_ts = build_generator(config.generator, height=config.data.size)
        self.discriminator_s = build_discriminator(config.discriminator)
        self.discriminator_t = build_discriminator(config.discriminator)
        for generator in self.generators:
            if isinstance(generator, UNet):
                generator.recompute = config.train.recompute
        for module in self.modules():
            if isinstance(module, Convolution):
                module.split_kernel, module.pad_channels = config.train.split_kernels, config.train.pad_channels
        self.decay = config.train.average
        if self.decay:
            self.average_st = copy.deepcopy(self.generator_st).requires_grad_(False)
            self.average_ts = copy.deepcopy(self.generator_ts).requires_grad_(False)

    @property
    def generators(self) -> nn.ModuleList:
        """Both generators, as one module without own state."""
        return nn.ModuleList([self.generator_st, self.generator_ts])

    @property
    def discriminators(self) -> nn.ModuleList:
        """Both discriminators, as one module without own state."""
        return nn.ModuleList([self.discriminator_s, self.discriminator_t])

    @property
    def learning(self) -> nn.ModuleList:
        """The four networks that are trained."""
        return nn.ModuleList([*self.generators, *self.discriminators])

    @property
    def translators(self) -> nn.ModuleList:
        """The two networks that translate outside training, S to T and T to S.

        They are the averages if there are any, else the generators.
        """
        return nn.ModuleList([self.average_st, self.average_ts]) if self.decay else self.generators

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
