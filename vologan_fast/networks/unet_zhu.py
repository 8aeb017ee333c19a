"""U-Net generator of Zhu et al. (arXiv 1703.10593, after pix2pix, arXiv 1611.07004), in the form of their PyTorch code.

All convolutions are 4×4. Level i halves the size and has w_i = min(width · 2^i, max_width) channels. The first and the
last level have no norm. A level of the decoder doubles the size by a transposed convolution, and joins the result of
the encoder of this size, which a ReLU has made positive. The last one gives the image.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vologan_fast.config import GeneratorConfig
from vologan_fast.networks.blocks import activation_of, convolution, finished, norm_act
from vologan_fast.networks.dropout import Dropout
from vologan_fast.networks.generator import Generator
from vologan_fast.networks.initializers import initialize

_KERNEL = 4
_WITHOUT_DROPOUT = 5
"""Levels of the decoder that have no dropout by default: the lowest and the four outermost."""


class ZhuUNetGenerator(Generator):
    """(N, channels_in, H, W) → (N, channels_out, H, W), both in [0, 1], float32.

    H and W must be multiples of 2^levels, else ConfigError is raised. They may be equal to it, because the lowest level
    has no norm. `channels_out` None stands for `channels_in`. The network of the paper has 8 levels for images of 256 ×
    256, and 7 for 128 × 128. The dropout drops single elements. Its `dropout_levels` begin at the second lowest level.
    """

    least_multiple = 1

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
        self.size_multiple = 2**config.levels
        widths = [min(config.width * 2**level, config.max_width) for level in range(config.levels)]
        self.feature_widths = [channels_in, *widths]
        channels_out = channels_in if channels_out is None else channels_out
        lowest = config.levels - 1
        dropped = max(config.levels - _WITHOUT_DROPOUT, 0) if config.dropout_levels is None else config.dropout_levels

        self.down = nn.ModuleList(
            convolution(before, width, _KERNEL, config, stride=2)
            for before, width in zip([channels_in + config.noise_channels, *widths], widths, strict=False)
        )
        self.down_norm = nn.ModuleList(
            norm_act(width, config)
            if 0 < level < lowest
            else activation_of(config.activation, width, config.negative_slope)
            for level, width in enumerate(widths)
        )
        self.up = nn.ModuleList()  # from the lowest level on
        self.up_norm = nn.ModuleList()
        for level in reversed(range(config.levels)):
            below = widths[level] if level == lowest else 2 * widths[level]
            above = channels_out if level == 0 else widths[level - 1]
            self.up.append(_double(below, above, config, config.output_bias if level == 0 else config.bias))
            if level > 0:
                has_dropout = lowest - dropped <= level < lowest and config.dropout > 0
                self.up_norm.append(_UpNorm(above, config, level if has_dropout else None))
        self.add_hole_head(channels_in, channels_out)

    def run(self, y: Tensor, keys: Tensor | None, features_only: bool) -> tuple[Tensor | None, list[Tensor]]:
        """As in `Generator`. The features are those of the encoder's levels."""
        found = []
        for down, norm in zip(self.down, self.down_norm, strict=True):
            y = norm(down(y))
            found.append(y)
        if features_only:
            return None, found
        y, skips = F.relu(y), found[-2::-1]
        *ups, to_image = self.up
        for up, norm, skip in zip(ups, self.up_norm, skips, strict=True):
            y = torch.cat((F.relu(skip), norm(up(y), keys)), dim=1)
        return to_image(y), found


class _UpNorm(nn.Module):
    """Norm, ReLU, and dropout if there is a `layer` of it."""

    def __init__(self, channels: int, config: GeneratorConfig, layer: int | None) -> None:
        super().__init__()
        self.norm = norm_act(channels, config, activation="relu")
        self.dropout = Dropout(config.dropout, layer) if layer is not None else None

    def forward(self, x: Tensor, keys: Tensor | None) -> Tensor:
        y: Tensor = self.norm(x)
        return y if self.dropout is None else self.dropout(y, keys)


def _double(channels: int, width: int, config: GeneratorConfig, bias: bool) -> nn.Module:
    layer = nn.ConvTranspose2d(channels, width, _KERNEL, 2, padding=1, bias=bias)
    with torch.no_grad():  # its weight is (in, out, 4, 4)
        initialize(layer.weight.transpose(0, 1), config.initializer, config.negative_slope)
    return finished(layer, config)
