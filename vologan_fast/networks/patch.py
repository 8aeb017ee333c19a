"""PatchGAN discriminator of Zhu et al. (arXiv 1703.10593): each logit judges a patch of the image.

With three levels, a patch has 70 × 70 pixels. All convolutions are 4×4. Those of the levels halve the size. Two more
follow, and the last makes the logits. The first and the last have a bias and no norm. In the anti-aliased form of CUT,
the levels keep the size but for one pixel, and a blur halves it.
"""

from __future__ import annotations

from torch import Tensor, nn

from vologan_fast.config import DiscriminatorConfig
from vologan_fast.networks.blocks import ConvBlock, GatedAttention, activation_of, convolution, in_range
from vologan_fast.networks.resampling import Blur, BlurredBlock

_KERNEL = 4


class PatchDiscriminator(nn.Module):
    """(N, channels, H, W) → logits (N, 1, H/2^levels − 2, W/2^levels − 2).

    Level i has min(width · 2^i, max_width) channels, and so has the block behind the last level.
    """

    def __init__(self, config: DiscriminatorConfig, channels: int = 4) -> None:
        super().__init__()
        self.config = config
        widths = [min(config.width * 2**level, config.max_width) for level in range(config.levels + 1)]
        blurs = config.down == "antialiased"
        self.first = convolution(channels, widths[0], _KERNEL, config, stride=1 if blurs else 2, bias=True)
        self.activation = activation_of(config.activation, widths[0], config.negative_slope)
        attends = config.attention != "none"
        blocks: list[nn.Module] = [Blur(widths[0])] if blurs else []
        for level in range(1, config.levels + 1):
            before, width, last = widths[level - 1], widths[level], level == config.levels
            if blurs and not last:
                blocks.append(BlurredBlock(before, width, config, _KERNEL))
            else:
                padded, following = level > 1 and not blurs, 1 if attends and last else _KERNEL
                stride = 1 if last else 2
                blocks.append(
                    ConvBlock(
                        before, width, config, kernel=_KERNEL, stride=stride, padded=padded, next_kernel=following
                    )
                )
        if attends:
            blocks.append(GatedAttention(widths[-1], config))
        self.blocks = nn.Sequential(*blocks)
        self.to_logits = convolution(widths[-1], 1, _KERNEL, config, bias=True, padded=not attends)

    def forward(self, x: Tensor, keys: Tensor | None = None) -> tuple[Tensor]:
        """Return the logits of x. `keys` has no use, because this network has no dropout."""
        y = self.activation(self.first(in_range(x, self.config)))
        return (self.to_logits(self.blocks(y)),)
