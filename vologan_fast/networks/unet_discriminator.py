"""U-Net discriminator (Schönfeld et al., arXiv 2002.12655): it judges the image as a whole, and each pixel.

Its levels are those of the U-Net generator. The bottleneck's features, summed over all positions, give one logit by a
linear layer. The decoder gives a logit for each pixel. Dropout is in the bottleneck and in the lower half of the
decoder's levels, and the attention in the lowest.
"""

from __future__ import annotations

from torch import Tensor

from vologan_fast.config import DiscriminatorConfig
from vologan_fast.networks.blocks import convolution, in_range
from vologan_fast.networks.generator import check_sides
from vologan_fast.networks.unet import UNet


class UNetDiscriminator(UNet):
    """(N, channels, H, W) → logits: whole image (N, 1, 1, 1), and pixels (N, 1, H, W).

    H and W must be multiples of 2^levels and larger than it, else ConfigError is raised.
    """

    def __init__(self, config: DiscriminatorConfig, channels: int = 4) -> None:
        super().__init__(
            config,
            channels,
            bottleneck_blocks=config.blocks,
            dropout_levels=config.levels // 2,
            attention_level=None if config.attention == "none" else config.levels - 1,
            attention_last=True,
        )
        self.config = config
        widths = [min(config.width * 2**level, config.max_width) for level in (0, config.levels - 1)]
        self.whole = convolution(widths[1], 1, 1, config, bias=True)
        self.pixels = convolution(widths[0], 1, 1, config, bias=True)

    def forward(self, x: Tensor, keys: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the logits of x. `keys`: (N,) int64, the dropout keys of the samples.

        Without keys, the dropout draws from torch's generator. Raises ConfigError for a size that does not fit.
        """
        check_sides(x, self.size_multiple, "discriminator")
        inner, skips = self.encode(in_range(x, self.config), keys)
        whole = self.whole(inner.sum((2, 3), keepdim=True))
        return whole, self.pixels(self.decode(inner, skips, keys))
