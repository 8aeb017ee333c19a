"""The networks: blocks, the U-Net generator, the one-shot discriminator, initialisers. Knows kernels, not losses."""

import torch
from torch import nn

from vologan_fast.config import Config
from vologan_fast.networks.discriminator import OneShotDiscriminator
from vologan_fast.networks.generator import UNetGenerator

__all__ = ["Networks", "OneShotDiscriminator", "UNetGenerator"]


class Networks(nn.Module):
    """The four networks of a CycleGAN between S (synthetic) and T (real): `st` translates S to T, `ts` back."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.generator_st = UNetGenerator(config.generator)
        self.generator_ts = UNetGenerator(config.generator)
        self.discriminator_s = OneShotDiscriminator(config.discriminator)
        self.discriminator_t = OneShotDiscriminator(config.discriminator)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def generators(self) -> nn.ModuleList:
        """Both generators, as one module without state of its own."""
        return nn.ModuleList([self.generator_st, self.generator_ts])

    @property
    def discriminators(self) -> nn.ModuleList:
        """Both discriminators, as one module without state of its own."""
        return nn.ModuleList([self.discriminator_s, self.discriminator_t])
