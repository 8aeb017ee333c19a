"""U-Net generator. It maps an image in [0, 1] of one domain to an image in [0, 1] of the other.

Encoder level i has w_i = min(width · 2^i, max_width) channels. It applies some blocks (two by default), keeps the
result as the skip, and halves the size. As many blocks form the bottleneck. A decoder level doubles the size, joins the
skip and applies as many blocks. A 1×1 convolution and a bounded activation give the image.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vologan_fast.config import ConfigError, GeneratorConfig
from vologan_fast.networks.blocks import ConvBlock, GatedAttention, border, convolution, reflected
from vologan_fast.networks.dropout import Dropout, through
from vologan_fast.networks.generator import Generator
from vologan_fast.networks.resampling import SampledConfig, double, halve, halved_channels

Block = type[nn.Module]
"""A class of blocks. The arguments of its constructor are those of `ConvBlock`."""


class UNet(nn.Module):
    """The levels of a U-Net, without its last convolution: (N, channels, H, W) → (N, width, H, W).

    Subclasses change its parts by the attributes below. The bottleneck has `bottleneck_blocks` blocks. The
    `dropout_levels` lowest levels of the decoder have a dropout, and `attention_level` has the attention, behind its
    dropout or before it. The outermost level is level 0. The first `recompute` outer levels keep only their inputs and
    run again in the backward. These levels hold most of the activations.
    """

    block: Block = ConvBlock
    """The blocks of a level."""
    bottleneck_block: Block = ConvBlock
    """The blocks of the bottleneck."""
    skips = True
    """Whether the decoder gets the encoder's results."""

    def __init__(
        self,
        config: SampledConfig,
        channels: int,
        *,
        bottleneck_blocks: int,
        dropout_levels: int,
        attention_level: int | None,
        attention_last: bool,
    ) -> None:
        super().__init__()
        self.square = config.attention == "elementwise"
        """Whether the images must be square."""
        widths = [min(config.width * 2**level, config.max_width) for level in range(config.levels)]
        self.size_multiple = 2**config.levels
        self.recompute = 0

        self.encoder = nn.ModuleList()
        self.down = nn.ModuleList()
        self.skip_pads: list[int] = []
        convolves_down = config.down == "conv_stride_2"
        before = channels
        for level, width in enumerate(widths):
            kernel = config.first_kernel if level == 0 else config.kernel
            self.encoder.append(
                _blocks(
                    self.block,
                    config.blocks,
                    before,
                    width,
                    config,
                    kernel=kernel,
                    padded=level > 0 and convolves_down,
                    next_kernel=kernel if convolves_down else 1,
                )
            )
            self.down.append(halve(width, width, kernel, config, next_kernel=config.kernel))
            self.skip_pads.append(border(kernel, config) if convolves_down else 0)
            before = halved_channels(width, width, config)
        self.join_pad = border(config.kernel, config)

        deepest = widths[-1]
        self.feature_widths = [channels, *widths, deepest]
        self.bottleneck = nn.Sequential(
            *_blocks(
                self.bottleneck_block,
                bottleneck_blocks,
                before,
                deepest,
                config,
                kernel=config.kernel,
                padded=convolves_down,
            ),
            Dropout(config.dropout, layer=config.levels, spatial=True),
        )

        self.up = nn.ModuleList()
        self.decoder = nn.ModuleList()
        self.concatenate = config.join == "concat"
        for level in reversed(range(config.levels)):
            width, below = widths[level], widths[min(level + 1, config.levels - 1)]
            joined = 2 * width if self.concatenate and self.skips else width
            self.up.append(double(below, width, config))
            blocks = _blocks(self.block, config.blocks, joined, width, config, kernel=config.kernel, padded=True)
            dropped = level >= config.levels - dropout_levels
            more: list[nn.Module] = [Dropout(config.dropout, level, spatial=True)] if dropped else []
            if level == attention_level:
                more.insert(len(more) if attention_last else 0, GatedAttention(width, config))
            self.decoder.append(nn.Sequential(*blocks, *more))

    def encode(self, x: Tensor, keys: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        """Return the bottleneck's features, and those of the levels from the outermost on, padded for `decode`."""
        levels = []
        for level, (blocks, down) in enumerate(zip(self.encoder, self.down, strict=True)):
            x = self._run(blocks, x, keys, level)
            levels.append(_with_padding(x, self.skip_pads[level], self.join_pad) if self.skips else x)
            x = down(x)
        return through(self.bottleneck, x, keys), levels

    def unpadded(self, levels: list[Tensor]) -> list[Tensor]:
        """Return the levels of `encode` without padding. They are views."""
        pads = [self.join_pad] * len(levels) if self.skips else self.skip_pads
        return [_with_padding(x, pad, 0) for x, pad in zip(levels, pads, strict=True)]

    def decode(self, x: Tensor, levels: list[Tensor], keys: Tensor | None) -> Tensor:
        """Return the features of the outermost level. `x` and `levels` come from `encode`. `levels` is emptied."""
        numbers = reversed(range(len(self.decoder)))
        for level, up, blocks in zip(numbers, self.up, self.decoder, strict=True):
            x = _with_padding(up(x), 0, self.join_pad)  # pad before joining: half as much to copy and to keep
            skip = levels.pop()
            if self.skips:
                x = torch.cat((x, skip), dim=1) if self.concatenate else x + skip
            x = self._run(blocks, x, keys, level)
        return x

    def _run(self, blocks: nn.Module, x: Tensor, keys: Tensor | None, level: int) -> Tensor:
        if level < self.recompute and self.training and torch.is_grad_enabled():
            return checkpoint(through, blocks, x, keys, use_reentrant=False, preserve_rng_state=keys is None)
        return through(blocks, x, keys)


def _blocks(
    block: Block,
    count: int,
    channels: int,
    width: int,
    config: SampledConfig,
    *,
    kernel: int,
    padded: bool,
    next_kernel: int = 1,
) -> nn.Sequential:
    """Return `count` blocks in turn. `padded` and `next_kernel` hold for the first and for the last of them."""
    return nn.Sequential(
        *(
            block(
                width if i else channels,
                width,
                config,
                kernel=kernel,
                padded=padded or i > 0,
                next_kernel=kernel if i < count - 1 else next_kernel,
            )
            for i in range(count)
        )
    )


class UNetGenerator(Generator, UNet):
    """(N, channels_in, H, W) → (N, channels_out, H, W), both in [0, 1], float32.

    H and W must be multiples of 2^levels and larger than it, else ConfigError is raised. `channels_out` None stands for
    `channels_in`. `height` is the height of the training images. Only `attention_size` needs it.
    """

    def __init__(
        self,
        config: GeneratorConfig,
        channels_in: int = 4,
        channels_out: int | None = None,
        *,
        height: int | None = None,
    ) -> None:
        UNet.__init__(
            self,
            config,
            channels_in + config.noise_channels,
            bottleneck_blocks=config.blocks if self.bottleneck_block is ConvBlock else config.residual_blocks,
            dropout_levels=config.levels // 2 if config.dropout_levels is None else config.dropout_levels,
            attention_level=_attention_level(config, height),
            attention_last=config.attention_size > 0,
        )
        self.config = config
        self.feature_widths[0] = channels_in
        channels_out = channels_in if channels_out is None else channels_out
        self.to_image = convolution(
            min(config.width, config.max_width),
            channels_out,
            1,
            config,
            bias=config.output_bias,
            initializer={"tanh": "glorot_uniform", "residual": "normal"}.get(config.output, "he_uniform"),
        )
        self.add_hole_head(channels_in, channels_out)

    def run(self, y: Tensor, keys: Tensor | None, features_only: bool) -> tuple[Tensor | None, list[Tensor]]:
        """As in `Generator`. The features are those of the encoder's levels and of the bottleneck."""
        inner, levels = self.encode(y, keys)
        found = [*self.unpadded(levels), inner]
        return None if features_only else self.to_image(self.decode(inner, levels, keys)), found


def _attention_level(config: GeneratorConfig, height: int | None) -> int | None:
    """Return the level whose decoder has the attention, from the outermost level 0 on. Raises ConfigError."""
    if config.attention == "none":
        return None
    if not config.attention_size:
        return config.levels - 1
    if height is None:
        raise ConfigError(
            f"generator.attention_size is {config.attention_size}: expected the height of the images too, found none"
        )
    heights = [height >> level for level in range(config.levels)]
    if config.attention_size not in heights:
        raise ConfigError(
            f"generator.attention_size is {config.attention_size}: expected the height of a level of the decoder "
            f"({', '.join(map(str, heights))}), or 0 for the lowest level"
        )
    return heights.index(config.attention_size)


def _with_padding(x: Tensor, has: int, wanted: int) -> Tensor:
    """Return x, which is reflection-padded by `has`, with a padding of `wanted`. A view if `wanted` is smaller."""
    if wanted > has:
        x, has = reflected(_with_padding(x, has, 0), wanted), wanted
    cut = has - wanted
    return x[:, :, cut : x.shape[2] - cut, cut : x.shape[3] - cut]
