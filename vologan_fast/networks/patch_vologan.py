"""VoloGAN's PatchGAN discriminator: levels of blocks, one wide block, and a 5×5 convolution to the logits."""

from __future__ import annotations

from torch import Tensor, nn

from vologan_fast.config import DiscriminatorConfig
from vologan_fast.networks.blocks import ConvBlock, GatedAttention, convolution, in_range
from vologan_fast.networks.resampling import halve, halved_channels

_LAST_KERNEL = 5


class LevelPatchDiscriminator(nn.Module):
    """(N, channels, H, W) → logits (N, 1, H/2^levels, W/2^levels).

    Level i has `blocks` blocks of min(width · 2^i, max_width) channels, and halves the size. The block behind the last
    level has min(width · 2^levels, max_width) channels: 8 times the width for the published three levels. The last
    convolution has no norm.
    """

    def __init__(self, config: DiscriminatorConfig, channels: int = 4) -> None:
        super().__init__()
        self.config = config
        widths = [min(config.width * 2**level, config.max_width) for level in range(config.levels + 1)]
        layers: list[nn.Module] = []
        before, convolves = channels, config.down == "conv_stride_2"
        for level, width in enumerate(widths[:-1]):
            kernel = config.first_kernel if level == 0 else config.kernel
            for i in range(config.blocks):
                following = kernel if convolves or i < config.blocks - 1 else 1
                padded = i > 0 or (convolves and level > 0)
                layers.append(ConvBlock(before, width, config, kernel=kernel, padded=padded, next_kernel=following))
                before = width
            layers.append(halve(width, width, kernel, config, next_kernel=config.kernel))
            before = halved_channels(width, width, config)
        attends = config.attention != "none"
        layers.append(
            ConvBlock(before, widths[-1], config, padded=convolves, next_kernel=1 if attends else _LAST_KERNEL)
        )
        if attends:
            layers.append(GatedAttention(widths[-1], config))
        self.trunk = nn.Sequential(*layers)
        self.to_logits = convolution(widths[-1], 1, _LAST_KERNEL, config, padded=not attends)

    def forward(self, x: Tensor, keys: Tensor | None = None) -> tuple[Tensor]:
        """Return the logits of x. `keys` has no use, because this network has no dropout."""
        return (self.to_logits(self.trunk(in_range(x, self.config))),)
