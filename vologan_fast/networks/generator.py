"""U-Net generator. It maps an image in [0, 1] of one domain to an image in [0, 1] of the other.

Encoder level i has w_i = min(width · 2^i, max_width) channels. It applies two blocks, keeps the result as the skip, and
halves the size. Two blocks form the bottleneck. A decoder level doubles the size, joins the skip and applies two
blocks. A 1×1 convolution and a bounded activation give the image.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from vologan_kernels.precision import to_accumulator

from vologan_fast.config import ConfigError, GeneratorConfig
from vologan_fast.networks.blocks import ConvBlock, GatedAttention, convolution
from vologan_fast.networks.dropout import Dropout, through


class UNetGenerator(nn.Module):
    """(N, channels, H, W) → (N, channels, H, W) in [0, 1], float32.

    H and W must be multiples of 2^levels and larger than it, else ConfigError is raised. The first `recompute` outer
    levels keep only their inputs and run again in the backward. These levels hold most of the activations. `height` is
    the height of the training images. Only `attention_size` needs it.
    """

    def __init__(self, config: GeneratorConfig, channels: int = 4, height: int | None = None) -> None:
        super().__init__()
        attention_level = _attention_level(config, height)
        self.square = config.attention == "elementwise"
        """Whether the images must be square."""
        widths = [min(config.width * 2**level, config.max_width) for level in range(config.levels)]
        self.size_multiple = 2**config.levels
        self.recompute = 0

        self.encoder = nn.ModuleList()
        self.down = nn.ModuleList()
        self.skip_pads: list[int] = []
        convolves_down = config.down == "conv_stride_2"
        for level, (before, width) in enumerate(itertools.pairwise([channels, *widths])):
            kernel = config.first_kernel if level == 0 else config.kernel
            self.encoder.append(
                nn.Sequential(
                    ConvBlock(
                        before, width, config, kernel=kernel, padded=level > 0 and convolves_down, next_kernel=kernel
                    ),
                    ConvBlock(
                        width, width, config, kernel=kernel, padded=True, next_kernel=kernel if convolves_down else 1
                    ),
                )
            )
            self.down.append(_halve(width, kernel, config))
            self.skip_pads.append(kernel // 2 if convolves_down and config.padding == "reflection" else 0)
        self.join_pad = config.kernel // 2 if config.padding == "reflection" else 0

        deepest = widths[-1]
        self.bottleneck = nn.Sequential(
            ConvBlock(deepest, deepest, config, padded=convolves_down, next_kernel=config.kernel),
            ConvBlock(deepest, deepest, config, padded=True),
            Dropout(config.dropout, layer=config.levels, spatial=True),
        )

        self.up = nn.ModuleList()
        self.decoder = nn.ModuleList()
        self.concatenate = config.join == "concat"
        dropout_levels = config.levels // 2 if config.dropout_levels is None else config.dropout_levels
        for level in reversed(range(config.levels)):
            width, below = widths[level], widths[min(level + 1, config.levels - 1)]
            joined = 2 * width if self.concatenate else width
            self.up.append(_double(below, width, config))
            blocks = [
                ConvBlock(joined, width, config, padded=True, next_kernel=config.kernel),
                ConvBlock(width, width, config, padded=True),
            ]
            dropped = level >= config.levels - dropout_levels
            more: list[nn.Module] = [Dropout(config.dropout, level, spatial=True)] if dropped else []
            if level == attention_level:
                more.insert(len(more) if config.attention_size else 0, GatedAttention(width, config))
            self.decoder.append(nn.Sequential(*blocks, *more))

        self.to_image = convolution(
            widths[0],
            channels,
            1,
            config,
            bias=config.output_bias,
            initializer={"tanh": "glorot_uniform", "residual": "normal"}.get(config.output, "he_uniform"),
        )
        self.output = config.output

    def forward(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        """Return the translation of x. `keys`: (N,) int64, the dropout keys of the samples.

        Without keys, the dropout draws from torch's generator. Raises ConfigError for a size that does not fit.
        """
        if x.shape[2] % self.size_multiple or x.shape[3] % self.size_multiple or min(x.shape[2:]) <= self.size_multiple:
            raise ConfigError(
                f"the generator halves the image {self.size_multiple.bit_length() - 1} times: its sides must be "
                f"multiples of {self.size_multiple} and larger than it, found {x.shape[2]} × {x.shape[3]}"
            )
        image, skips = x, []
        x = x.to(next(self.parameters()).dtype)  # a network in half changes an image in float32
        for level, (blocks, down) in enumerate(zip(self.encoder, self.down, strict=True)):
            x = self._run(blocks, x, keys, level)
            skips.append(_with_padding(x, self.skip_pads[level], self.join_pad))
            x = down(x)
        x = through(self.bottleneck, x, keys)
        levels = reversed(range(len(skips)))
        for level, up, blocks in zip(levels, self.up, self.decoder, strict=True):
            x = _with_padding(up(x), 0, self.join_pad)  # pad before joining: half as much to copy and to keep
            skip = skips.pop()
            x = self._run(blocks, torch.cat((x, skip), dim=1) if self.concatenate else x + skip, keys, level)
        y = to_accumulator(self.to_image(x))
        return _bounded(image + y if self.output == "residual" else y, self.output)

    def _run(self, blocks: nn.Module, x: Tensor, keys: Tensor | None, level: int) -> Tensor:
        if level < self.recompute and self.training and torch.is_grad_enabled():
            return checkpoint(through, blocks, x, keys, use_reentrant=False, preserve_rng_state=keys is None)
        return through(blocks, x, keys)


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


def _halve(width: int, kernel: int, config: GeneratorConfig) -> nn.Module:
    match config.down:
        case "conv_stride_2":
            return ConvBlock(
                width, width, config, kernel=kernel, stride=2, padded=True, next_kernel=config.kernel
            )  # next_kernel: of the next level, or of the bottleneck
        case "max_pooling":
            return nn.MaxPool2d(2)
        case "average_pooling":
            return nn.AvgPool2d(2)
        case "space_to_depth":
            return nn.Sequential(nn.PixelUnshuffle(2), ConvBlock(4 * width, width, config, kernel=1))


def _with_padding(x: Tensor, has: int, wanted: int) -> Tensor:
    """Return x, which is reflection-padded by `has`, with a padding of `wanted`. A view if `wanted` is smaller."""
    if wanted > has:
        x, has = F.pad(_with_padding(x, has, 0), (wanted,) * 4, mode="reflect"), wanted
    cut = has - wanted
    return x[:, :, cut : x.shape[2] - cut, cut : x.shape[3] - cut]


def _double(channels: int, width: int, config: GeneratorConfig) -> nn.Module:
    match config.up:
        case "depth_to_space":
            return nn.Sequential(ConvBlock(channels, 4 * width, config, kernel=1), nn.PixelShuffle(2))
        case "bilinear":
            return nn.Sequential(
                nn.Upsample(scale_factor=2, mode="bilinear"), ConvBlock(channels, width, config, kernel=1)
            )


def _bounded(x: Tensor, output: str) -> Tensor:
    """Apply the output activation, which maps to [0, 1]."""
    match output:
        case "hard_sigmoid":  # as in Keras; torch's has the slope 1/6
            return (0.2 * x + 0.5).clamp(0.0, 1.0)
        case "sigmoid":
            return torch.sigmoid(x)
        case "tanh":
            return 0.5 * torch.tanh(x) + 0.5
        case "residual":
            return x.clamp(0.0, 1.0)
    raise ValueError(f"unknown output {output!r}")
