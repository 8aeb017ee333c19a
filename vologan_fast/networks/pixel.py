"""Pixel discriminator of Isola et al. (arXiv 1611.07004): 1×1 convolutions judge each pixel by itself."""

from __future__ import annotations

from torch import Tensor, nn

from vologan_fast.config import DiscriminatorConfig
from vologan_fast.networks.blocks import ConvBlock, activation_of, convolution, in_range


class PixelDiscriminator(nn.Module):
    """(N, channels, H, W) → logits (N, 1, H, W), through `width` and then twice as many channels.

    The first and the last convolution have no norm. The first has a bias.
    """

    def __init__(self, config: DiscriminatorConfig, channels: int = 4) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.first = convolution(channels, width, 1, config, bias=True)
        self.activation = activation_of(config.activation, width, config.negative_slope)
        self.block = ConvBlock(width, 2 * width, config, kernel=1)
        self.to_logits = convolution(2 * width, 1, 1, config)

    def forward(self, x: Tensor, keys: Tensor | None = None) -> tuple[Tensor]:
        """Return the logits of x. `keys` has no use, because this network has no dropout."""
        return (self.to_logits(self.block(self.activation(self.first(in_range(x, self.config))))),)
