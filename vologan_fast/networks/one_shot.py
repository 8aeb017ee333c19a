"""One-shot discriminator (after One-Shot GAN, arXiv 2103.13389): one trunk with three outputs.

The *low-level* output is the result of the first convolution, before norm and activation. It judges texture. The
*content* output judges which objects are in the image: the trunk's features, averaged over all positions, go through
1×1 blocks. The *layout* output judges their positions: the same features go through blocks with one channel.
"""

from __future__ import annotations

from torch import Tensor, nn

from vologan_fast.config import DiscriminatorConfig
from vologan_fast.networks.blocks import ConvBlock, Convolution, GatedAttention, convolution, in_range, norm_act
from vologan_fast.networks.dropout import Dropout, through
from vologan_fast.networks.resampling import halve, halved_channels


class OneShotDiscriminator(nn.Module):
    """(N, channels, H, W) → logits: low level (N, w₀, H, W), content (N, w, 1, 1), layout (N, 1, H/8, W/8)."""

    def __init__(self, config: DiscriminatorConfig, channels: int = 4) -> None:
        super().__init__()
        self.config = config
        widths = config.widths
        self.low_level = convolution(channels, widths[0], config.first_kernel, config)
        convolves_down = config.down == "conv_stride_2"
        # A layer pads its output for the next one. Only blocks and convolutions read padded features.
        before_down = config.kernel if convolves_down else 1
        trunk: list[nn.Module] = [norm_act(widths[0], config, config.kernel if config.blocks > 1 else before_down)]
        width = widths[0]
        for level, level_width in enumerate(widths):
            first = 1 if level == 0 else 0  # the low-level convolution and its norm are the first block
            for i in range(first, config.blocks):
                following = config.kernel if i < config.blocks - 1 else before_down
                trunk.append(
                    ConvBlock(width, level_width, config, padded=i > 0 or convolves_down, next_kernel=following)
                )
                width = level_width
            last = level == len(widths) - 1
            down_width = config.down_widths[level]
            trunk.append(halve(width, down_width, config.kernel, config, next_kernel=1 if last else config.kernel))
            width = halved_channels(width, down_width, config)
        if config.attention != "none":
            trunk.append(GatedAttention(width, config))
        self.trunk = nn.Sequential(*trunk)

        two_dropouts = config.branch_dropouts == 2
        self.content = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            _content_block(width, config),
            *([Dropout(config.dropout, layer=2)] if two_dropouts else []),
            _content_block(width, config),
            Dropout(config.dropout, layer=0),
            convolution(width, width, 1, config),
        )
        for layer in self.content.modules():
            if isinstance(layer, Convolution):
                layer.single_pixel = True
        self.layout = nn.Sequential(
            ConvBlock(width, 1, config, next_kernel=config.kernel),
            ConvBlock(1, 1, config, padded=True, next_kernel=1 if two_dropouts else config.kernel),
            *([Dropout(config.dropout, layer=3)] if two_dropouts else []),
            ConvBlock(1, 1, config, padded=not two_dropouts),  # dropout comes before the padding
            Dropout(config.dropout, layer=1),
            convolution(1, 1, config.kernel, config),
        )

    def forward(self, x: Tensor, keys: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return the logits of x. `keys`: (N,) int64, the dropout keys of the samples.

        Without keys, the dropout draws from torch's generator.
        """
        low_level = self.low_level(in_range(x, self.config))
        features = self.trunk(low_level)
        return low_level, through(self.content, features, keys), through(self.layout, features, keys)


def _content_block(width: int, config: DiscriminatorConfig) -> nn.Module:
    if config.content_norm == "instance":
        return ConvBlock(width, width, config, kernel=1)
    activation = {"relu": nn.ReLU(), "elu": nn.ELU(), "gelu": nn.GELU(), "prelu": nn.PReLU(width)}.get(
        config.activation, nn.LeakyReLU(config.negative_slope)
    )
    return nn.Sequential(convolution(width, width, 1, config), activation)
