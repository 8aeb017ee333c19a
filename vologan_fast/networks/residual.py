"""Residual blocks. Both add their input to what a few convolutions make of it."""

from __future__ import annotations

from torch import Tensor, nn

from vologan_fast.config import BlockConfig, GeneratorConfig
from vologan_fast.networks.blocks import ConvBlock, border, convolution, norm_act
from vologan_fast.networks.dropout import Dropout


class ResidualBlock(nn.Module):
    """The block of Zhu et al. (arXiv 1703.10593): x + norm(convolution(block(x))), (N, C, H, W) → the same shape.

    No activation follows the sum. `layer` is the number of the dropout between the two convolutions. The arguments
    `padded` and `next_kernel` are those of `ConvBlock`.
    """

    takes_keys = True

    def __init__(
        self, channels: int, config: BlockConfig, layer: int, *, padded: bool = False, next_kernel: int = 1
    ) -> None:
        super().__init__()
        kernel, dropped = config.kernel, config.dropout > 0
        self.border = border(kernel, config) if padded else 0
        self.block = ConvBlock(channels, channels, config, padded=padded, next_kernel=1 if dropped else kernel)
        self.dropout = Dropout(config.dropout, layer) if dropped else None
        self.convolution = convolution(channels, channels, kernel, config, padded=not dropped)  # dropout, then padding
        self.norm = norm_act(channels, config, next_kernel, activation="identity")
        self.next_border = border(next_kernel, config)
        """Width of the padding around the result."""

    def forward(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        inner = self.block(x)
        if self.dropout is not None:
            inner = self.dropout(inner, keys)
        y: Tensor = self.norm(self.convolution(inner), cropped(x, self.border))
        return y


class ResidualBottleneckBlock(nn.Module):
    """x + norm(Σ paths(x)): `config.cardinality` parallel paths 1×1 → k×k → 1×1, (N, in, H, W) → (N, out, H, W).

    If the width changes, a 1×1 block comes first. The first two convolutions of a path are blocks with norm and
    activation. A path is out/64 wide, or out/4 if it is the only one, and at least 1. All paths are computed together:
    the k×k convolutions as one grouped convolution, and the sum by the last 1×1 convolution (ResNeXt, arXiv
    1611.05431, figure 3). No activation follows the sum. The arguments are those of `ConvBlock`.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        config: GeneratorConfig,
        *,
        kernel: int | None = None,
        padded: bool = False,
        next_kernel: int = 1,
    ) -> None:
        super().__init__()
        side, paths = config.kernel if kernel is None else kernel, config.cardinality
        inner = paths * max(channels_out // (64 if paths > 1 else 4), 1)
        self.border = border(side, config) if padded else 0
        self.project = ConvBlock(channels_in, channels_out, config, kernel=1) if channels_in != channels_out else None
        self.reduce = ConvBlock(channels_out, inner, config, kernel=1, next_kernel=side)
        self.convolve = ConvBlock(inner, inner, config, kernel=side, groups=paths, padded=True)
        self.expand = convolution(inner, channels_out, 1, config)
        self.norm = norm_act(channels_out, config, next_kernel, activation="identity")

    def forward(self, x: Tensor) -> Tensor:
        x = cropped(x, self.border)
        if self.project is not None:
            x = self.project(x)
        y: Tensor = self.norm(self.expand(self.convolve(self.reduce(x))), x)
        return y


def cropped(x: Tensor, border: int) -> Tensor:
    """Return a view of (N, C, H, W) without a border of so many pixels."""
    return x[:, :, border : x.shape[2] - border, border : x.shape[3] - border] if border else x
