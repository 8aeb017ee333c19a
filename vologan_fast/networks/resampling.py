"""Layers between the levels of a network: they halve or double height and width."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vologan_fast.config import BlockConfig, DiscriminatorConfig, GeneratorConfig
from vologan_fast.networks.blocks import ConvBlock, convolution, finished, norm_act, reflected
from vologan_fast.networks.initializers import initialize

SampledConfig = GeneratorConfig | DiscriminatorConfig
"""A configuration with `down` and `up`."""


def halve(channels: int, width: int, kernel: int, config: SampledConfig, *, next_kernel: int = 1) -> nn.Module:
    """Return the layer of `config.down`: (N, channels, H, W) → (N, halved_channels(…), H/2, W/2).

    `width` and `kernel` are those of the convolution, if the layer has one. Only `conv_stride_2` reads an input that is
    padded for `kernel`, and pads its output for `next_kernel` (see `ConvBlock`).
    """
    match config.down:
        case "conv_stride_2":
            return ConvBlock(channels, width, config, kernel=kernel, stride=2, padded=True, next_kernel=next_kernel)
        case "max_pooling":
            return nn.MaxPool2d(2)
        case "average_pooling":
            return nn.AvgPool2d(2)
        case "space_to_depth":
            return nn.Sequential(nn.PixelUnshuffle(2), ConvBlock(4 * channels, width, config, kernel=1))
        case "bare_space_to_depth":
            return nn.PixelUnshuffle(2)
        case "antialiased":
            return BlurredBlock(channels, width, config, kernel)


def halved_channels(channels: int, width: int, config: SampledConfig) -> int:
    """Return the number of channels that `halve` makes of `channels`."""
    match config.down:
        case "conv_stride_2" | "space_to_depth" | "antialiased":
            return width
        case "max_pooling" | "average_pooling":
            return channels
        case "bare_space_to_depth":
            return 4 * channels


PADDED_UP = ("bilinear", "transposed_convolution", "antialiased")
"""Values of `up` whose layer ends with a norm, which can pad its output."""


def double(channels: int, width: int, config: SampledConfig, *, next_kernel: int = 1) -> nn.Module:
    """Return the layer of `config.up`: (N, channels, H, W) → (N, width, 2H, 2W).

    The layers in `PADDED_UP` pad their output for `next_kernel` (see `ConvBlock`).
    """
    match config.up:
        case "depth_to_space":
            return nn.Sequential(ConvBlock(channels, 4 * width, config, kernel=1), nn.PixelShuffle(2))
        case "bilinear":
            block = ConvBlock(channels, width, config, kernel=1, next_kernel=next_kernel)
            return BilinearPointwise(_bilinear(), block)
        case "bilinear_residual":
            return BilinearResidual(channels, width, config)
        case "transposed_convolution":
            return TransposedConvBlock(channels, width, config, next_kernel)
        case "antialiased":
            return BilinearBlock(channels, width, config, next_kernel)


def _bilinear() -> nn.Module:
    return nn.Upsample(scale_factor=2, mode="bilinear")


class BilinearPointwise(nn.Sequential):
    """A bilinear enlargement, then a 1×1 block: (N, channels, H, W) → (N, width, 2H, 2W).

    The enlargement gives each pixel a mean of pixels, and the convolution is the same for all pixels. So the
    convolution can come first. Then it has a quarter of the pixels, and keeps a quarter of the bytes.
    """

    def forward(self, x: Tensor) -> Tensor:
        resize, block = self
        assert isinstance(block, ConvBlock)
        y: Tensor = block.norm(resize(block.convolution(x)))
        return y


class BilinearResidual(nn.Module):
    """VoloGAN's bilinear additive residual: the doubled input goes through a 1×1 block and two 3×3 blocks.

    The results of the two paths are added. (N, channels, H, W) → (N, width, 2H, 2W).
    """

    def __init__(self, channels: int, width: int, config: BlockConfig) -> None:
        super().__init__()
        self.resize = _bilinear()
        self.short = ConvBlock(channels, width, config, kernel=1)
        self.long = nn.Sequential(
            ConvBlock(channels, width, config, kernel=3, next_kernel=3),
            ConvBlock(width, width, config, kernel=3, padded=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.resize(x)
        y: Tensor = self.short(x) + self.long(x)
        return y


class TransposedConvBlock(nn.Module):
    """A 3×3 transposed convolution with stride 2, then norm and activation, as in Zhu et al. (arXiv 1703.10593).

    (N, channels, H, W) → (N, width, 2H, 2W), padded for `next_kernel` (see `ConvBlock`).
    """

    def __init__(self, channels: int, width: int, config: BlockConfig, next_kernel: int = 1) -> None:
        super().__init__()
        layer = nn.ConvTranspose2d(channels, width, 3, 2, padding=1, output_padding=1, bias=config.bias)
        with torch.no_grad():  # its weight is (in, out, 3, 3)
            initialize(layer.weight.transpose(0, 1), config.initializer, config.negative_slope)
        self.convolution = finished(layer, config)
        self.norm = norm_act(width, config, next_kernel)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.convolution(x))
        return y


class Blur(nn.Module):
    """(N, channels, H, W) → (N, channels, ⌈H/2⌉, ⌈W/2⌉): [1, 2, 1] / 4 in both directions, at every second pixel.

    This is the anti-aliased down-sampling of Zhang (arXiv 1904.11486). The border is reflected. `padded`: the input has
    a reflected border of one pixel already.
    """

    filter: Tensor

    def __init__(self, channels: int, *, padded: bool = False) -> None:
        super().__init__()
        self.channels, self.padded = channels, padded
        side = torch.tensor([1.0, 2.0, 1.0]) / 4
        self.register_buffer("filter", torch.outer(side, side).repeat(channels, 1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if not self.padded:
            x = reflected(x, 1)
        return F.conv2d(x, self.filter.to(x.dtype), stride=2, groups=self.channels)


class BlurredBlock(nn.Module):
    """A block that keeps the size, then `Blur`, as CUT halves images: (N, channels, H, W) → (N, width, H/2, W/2).

    The norm pads its output for the blur.
    """

    def __init__(self, channels: int, width: int, config: BlockConfig, kernel: int, *, padded: bool = False) -> None:
        super().__init__()
        self.convolution = convolution(channels, width, kernel, config, padded=padded)
        self.norm = norm_act(width, dataclasses.replace(config, padding="reflection"), next_kernel=3)
        self.blur = Blur(width, padded=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.blurred(self.convolution(x))

    def blurred(self, convolved: Tensor) -> Tensor:
        """Return the result of the block for the result of its convolution, which CUT compares."""
        y: Tensor = self.blur(self.norm(convolved))
        return y


class BilinearBlock(nn.Module):
    """A bilinear enlargement, then a block that pads with zeros, as CUT doubles images.

    CUT's code filters with [1, 3, 3, 1] and repeats the border. This is the same as the bilinear enlargement.
    (N, channels, H, W) → (N, width, 2H, 2W), padded for `next_kernel` (see `ConvBlock`).
    """

    def __init__(self, channels: int, width: int, config: BlockConfig, next_kernel: int = 1) -> None:
        super().__init__()
        self.resize = _bilinear()
        zero_padded = dataclasses.replace(config, padding="zero")
        self.convolution = convolution(channels, width, config.kernel, zero_padded)
        self.norm = norm_act(width, config, next_kernel)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.convolution(self.resize(x)))
        return y
