"""ResNet generator of Zhu et al. (arXiv 1703.10593, after Johnson et al.), in the form of their PyTorch code.

A k×k convolution (7×7 there) keeps the size. Each level then halves it and doubles the channels. Residual blocks
follow, and as many levels double the size. A k×k convolution and a bounded activation give the image. The layers that
halve the size pad with zeros. The others pad as `padding` says. With `antialiased` layers, it is the generator of CUT
(Park et al., arXiv 2007.15651).
"""

from __future__ import annotations

import dataclasses

from torch import Tensor, nn

from vologan_fast.config import GeneratorConfig
from vologan_fast.networks.blocks import ConvBlock, GatedAttention, convolution
from vologan_fast.networks.generator import Generator
from vologan_fast.networks.resampling import PADDED_UP, BlurredBlock, double, halve, halved_channels
from vologan_fast.networks.residual import ResidualBlock, cropped


class ResNetGenerator(Generator):
    """(N, channels_in, H, W) → (N, channels_out, H, W), both in [0, 1], float32.

    H and W must be multiples of 2^levels and larger than it, else ConfigError is raised. `channels_out` None stands for
    `channels_in`. `height` has no use here. Level i has min(width · 2^i, max_width) channels. The network of the paper
    has 2 levels, with 9 residual blocks for images of 256 × 256 and 6 for smaller ones.
    """

    def __init__(
        self,
        config: GeneratorConfig,
        channels_in: int = 4,
        channels_out: int | None = None,
        *,
        height: int | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.square = config.attention == "elementwise"
        channels_out = channels_in if channels_out is None else channels_out
        self.size_multiple = 2**config.levels
        widths = [min(config.width * 2**level, config.max_width) for level in range(config.levels + 1)]
        zero_padded = dataclasses.replace(config, padding="zero")

        self.stem = ConvBlock(channels_in + config.noise_channels, widths[0], config, kernel=config.first_kernel)
        self.down = nn.Sequential(
            *(_narrowed(widths[i], widths[i + 1], zero_padded) for i in range(config.levels)),
        )
        deepest, last = widths[-1], config.residual_blocks - 1
        self.compared_blocks = sorted({0, config.residual_blocks // 2})
        """Blocks whose results are features: the first, and the one in the middle, as in CUT."""
        self.feature_widths = [channels_in, *widths[1:], *(deepest for _ in self.compared_blocks)]
        self.blocks = nn.Sequential(
            *(
                ResidualBlock(
                    deepest, config, layer, padded=layer > 0, next_kernel=config.kernel if layer < last else 1
                )
                for layer in range(config.residual_blocks)
            ),
            *([GatedAttention(deepest, config)] if config.attention != "none" else []),
        )
        self.up = nn.Sequential(
            *(
                double(widths[i + 1], widths[i], config, next_kernel=1 if i else config.first_kernel)
                for i in reversed(range(config.levels))
            )
        )
        self.to_image = convolution(
            widths[0],
            channels_out,
            config.first_kernel,
            config,
            bias=config.output_bias,
            initializer="normal" if config.output == "residual" else None,
            padded=config.up in PADDED_UP,
        )
        self.add_hole_head(channels_in, channels_out)

    def run(self, y: Tensor, keys: Tensor | None, features_only: bool) -> tuple[Tensor | None, list[Tensor]]:
        """As in `Generator`. The features are those of the levels and of the blocks of `compared_blocks`.

        For a level with a blur, they are the result of the convolution, as in CUT.
        """
        y, found = self.stem(y), []
        for down in self.down.children():
            if isinstance(down, BlurredBlock):
                convolved = down.convolution(y)
                found.append(convolved)
                y = down.blurred(convolved)
            else:
                y = down(y)
                found.append(y)
        for number, block in enumerate(self.blocks.children()):
            y = block(y, keys) if isinstance(block, ResidualBlock) else block(y)
            if number in self.compared_blocks and isinstance(block, ResidualBlock):
                found.append(cropped(y, block.next_border))
            if features_only and number == self.compared_blocks[-1]:
                return None, found
        return self.to_image(self.up(y)), found


def _narrowed(channels: int, width: int, config: GeneratorConfig) -> nn.Module:
    """Return a layer that halves the size and makes `width` channels. If it only pools, a block changes the width."""
    halved = halve(channels, width, config.kernel, config)
    between = halved_channels(channels, width, config)
    if between == width:
        return halved
    return nn.Sequential(halved, ConvBlock(between, width, config))
