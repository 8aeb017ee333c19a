"""The networks by name. A new network is a file of this folder, a line here, and its name in `config/settings.py`.

A generator takes (config, channels_in, channels_out, height=…), and is a `Generator`. A discriminator takes (config,
channels). Its forward takes images and the keys of the samples, and returns a tuple of logits.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from torch import nn

from vologan_fast.config import Config, DiscriminatorConfig, GeneratorConfig
from vologan_fast.networks.generator import Generator
from vologan_fast.networks.one_shot import OneShotDiscriminator
from vologan_fast.networks.patch import PatchDiscriminator
from vologan_fast.networks.patch_vologan import LevelPatchDiscriminator
from vologan_fast.networks.pixel import PixelDiscriminator
from vologan_fast.networks.resnet import ResNetGenerator
from vologan_fast.networks.resnet_vologan import LevelResNetGenerator
from vologan_fast.networks.unet import UNetGenerator
from vologan_fast.networks.unet_discriminator import UNetDiscriminator
from vologan_fast.networks.unet_residual import ResidualUNetGenerator
from vologan_fast.networks.unet_residual_bottleneck import ResidualBottleneckUNetGenerator
from vologan_fast.networks.unet_zhu import ZhuUNetGenerator

GENERATORS: dict[str, type[Generator]] = {
    "unet": UNetGenerator,
    "unet_residual": ResidualUNetGenerator,
    "unet_residual_bottleneck": ResidualBottleneckUNetGenerator,
    "unet_zhu": ZhuUNetGenerator,
    "resnet": ResNetGenerator,
    "resnet_vologan": LevelResNetGenerator,
}
DISCRIMINATORS: dict[str, type[nn.Module]] = {
    "one_shot": OneShotDiscriminator,
    "patch": PatchDiscriminator,
    "patch_vologan": LevelPatchDiscriminator,
    "pixel": PixelDiscriminator,
    "unet": UNetDiscriminator,
}


def build_generator(
    config: GeneratorConfig, channels_in: int = 4, channels_out: int | None = None, *, height: int | None = None
) -> Generator:
    """Return the generator `config.network` for training images of this height.

    `channels_out` None stands for `channels_in`. Only the attention of the U-Nets needs the height.
    """
    return GENERATORS[config.network](config, channels_in, channels_out, height=height)


def generator_of(config: Config, direction: Literal["st", "ts"]) -> Generator:
    """Return the generator of a run for one direction: S to T, or T to S.

    T is the domain of the sensor. So only the generator S to T has noise channels and a hole head.
    """
    settings = config.generator
    channels = [of_domain.number for of_domain in config.data.channel_sets.values()]
    if direction == "ts":
        settings = dataclasses.replace(settings, noise_channels=0, hole_head=False)
        channels.reverse()
    return build_generator(settings, *channels, height=config.data.shape[0])


def build_discriminator(config: DiscriminatorConfig, channels: int = 4) -> nn.Module:
    """Return the discriminator `config.network` for images with so many channels."""
    return DISCRIMINATORS[config.network](config, channels)
