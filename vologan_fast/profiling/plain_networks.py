"""The networks as GAN code has them today, for comparison. They have the structure and the state dict of ours.

They have `nn.InstanceNorm2d`, an activation, convolutions that pad for themselves, and torch's own spectral norm, which
iterates in every forward.
"""

from __future__ import annotations

import dataclasses
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm
from vologan_kernels import InstanceNormAct2d

from vologan_fast.config import Config
from vologan_fast.networks import Networks, OneShotDiscriminator, UNetGenerator
from vologan_fast.networks.blocks import Convolution
from vologan_fast.networks.resampling import BilinearPointwise


class Plain(nn.InstanceNorm2d):
    """The norm and what follows it, one operation after the other."""

    def __init__(self, norm: InstanceNormAct2d) -> None:
        super().__init__(norm.num_features, norm.eps, affine=norm.affine)
        self.activation, self.negative_slope, self.pad = norm.activation, norm.negative_slope, norm.reflection_pad
        self.slope = norm.slope  # of prelu, else None

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        y = super().forward(x)
        if residual is not None:
            y = y + residual
        match self.activation:
            case "leaky_relu":
                y = F.leaky_relu(y, self.negative_slope)
            case "prelu":
                y = F.prelu(y, self.slope)  # type: ignore[arg-type]
            case "tanh":
                y = torch.tanh(y)
            case "relu" | "silu" | "gelu" | "elu":
                y = getattr(F, self.activation)(y)
        return F.pad(y, (self.pad,) * 4, mode="reflect") if self.pad else y


def plain_networks(config: Config) -> Networks:
    """The networks of a configuration. They load the state of `Networks(config)`."""
    networks = Networks(without_spectral_norm(config))
    made_plain(networks)
    for pair, of in ((networks.generators, config.generator), (networks.discriminators, config.discriminator)):
        for module in list(pair.modules()):
            if isinstance(module, nn.Conv2d) and of.spectral_norm:
                spectral_norm(module)
    return networks


def made_plain(network: nn.Module) -> None:
    """Give a `network` without spectral norm the norms that GAN code has today, with new weights.

    In VoloGAN's U-Net and its one-shot discriminator, the convolutions pad for themselves. Elsewhere paddings stay
    where they are: after a norm, or in front of a convolution. Layers stand in the order of the paper.
    """
    like = next(network.parameters())
    own = [module for module in network.modules() if isinstance(module, (UNetGenerator, OneShotDiscriminator))]
    pad_themselves = {module for owner in own for module in owner.modules()}
    for module in list(network.modules()):
        if isinstance(module, UNetGenerator):
            module.skip_pads, module.join_pad = [0] * len(module.skip_pads), 0
        if isinstance(module, Convolution):
            module.single_pixel = False
        for name, child in list(module.named_children()):
            if isinstance(child, InstanceNormAct2d):
                if module in pad_themselves:
                    child.reflection_pad = 0
                setattr(module, name, Plain(child).to(like))
            elif isinstance(child, BilinearPointwise):
                setattr(module, name, nn.Sequential(*child))
            elif module in pad_themselves and _needs_padding(child):
                setattr(module, name, _padding_convolution(child).to(like))


def _needs_padding(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    return isinstance(module, nn.Conv2d) and module.kernel_size > (1, 1) and not any(module.padding)


def _padding_convolution(like: nn.Conv2d) -> nn.Conv2d:
    side = like.kernel_size[0]
    return nn.Conv2d(
        like.in_channels,
        like.out_channels,
        side,
        like.stride,  # type: ignore[arg-type]
        side // 2,
        bias=like.bias is not None,
        padding_mode="reflect",
    )


def without_spectral_norm(config: Config) -> Config:
    return dataclasses.replace(
        config,
        generator=dataclasses.replace(config.generator, spectral_norm=False),
        discriminator=dataclasses.replace(config.discriminator, spectral_norm=False),
    )
