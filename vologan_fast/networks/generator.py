"""The part that all generators share: noise in their input, a bounded output, background, and holes.

A subclass is one network (`unet.py`, `unet_zhu.py`, `resnet.py`).
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from vologan_kernels.precision import to_accumulator

from vologan_fast.config import ConfigError, GeneratorConfig
from vologan_fast.networks.blocks import in_range
from vologan_fast.networks.stochastic import HoleHead, as_input, measured, noise_of, with_holes

Features = Literal["none", "also", "only"]
"""Whether a generator returns its features, which the contrastive method compares."""


class Generator(nn.Module):
    """(N, channels_in, H, W) → (N, channels_out, H, W), both in [0, 1], float32.

    A subclass sets the attributes without a value, and calls `set_channels` last.
    """

    config: GeneratorConfig
    size_multiple: int
    """H and W must be multiples of it."""
    least_multiple = 2
    """The shortest side of an image, in these multiples."""
    square = False
    """Whether the images must be square."""
    feature_widths: list[int]
    """Channels of the features: those of the image, and then those of `run`."""
    hole_head: HoleHead | None

    def set_channels(self, channels_in: int, channels_out: int) -> None:
        """Add the hole head, if there is one."""
        config = self.config
        self.hole_head = HoleHead(channels_in + channels_out, config) if config.hole_head else None

    def run(self, y: Tensor, keys: Tensor | None, features_only: bool) -> tuple[Tensor | None, list[Tensor]]:
        """Return the result of the last convolution (N, channels_out, H, W), and the features (N, C, h, w).

        `y` (N, channels_in + noise_channels, H, W) is the input in its range. With `features_only`, the result is None.
        """
        raise NotImplementedError

    def forward(
        self,
        x: Tensor,
        keys: Tensor | None = None,
        features: Features = "none",
        noise: Tensor | None = None,
        hole_plane: bool = False,
    ) -> Any:
        """Return the translation of x. `keys`: (N,) int64, the keys of the samples for dropout and noise.

        Without keys, both come from torch's generator. `noise` (N, noise_channels, H, W) replaces that of the keys.
        With `hole_plane`, a generator with `hole_head` returns its depth without holes, and the holes as one more
        channel. With `features` "also", return (translation, features), and with "only", return the features, a list of
        tensors: x itself, and those of `run`. Raises ConfigError for a size that does not fit, and ValueError for noise
        of another shape.
        """
        check_sides(x, self.size_multiple, "generator", larger=self.least_multiple > 1)
        noise = noise_of(x, self.config.noise_channels, keys, noise)
        y = in_range(x, self.config)
        if noise is not None:
            y = torch.cat((y, as_input(noise).to(y)), 1)
        # A network in half changes an image in float32.
        result, found = self.run(y.to(next(self.parameters()).dtype), keys, features == "only")
        found = [x, *found]
        if result is None:
            return found
        translation = _bounded(x, to_accumulator(result), self.config)
        if self.config.keep_background:
            translation = translation * (x.amax(1, keepdim=True) > 0)
        if self.hole_head is not None:
            translation = with_holes(translation, self.hole_head(x, translation, noise))
            translation = translation if hole_plane else measured(translation)
        return (translation, found) if features == "also" else translation


def check_sides(x: Tensor, size_multiple: int, network: str, *, larger: bool = True) -> None:
    """Raise ConfigError unless the sides of x (N, C, H, W) are multiples of `size_multiple` and `larger` than it."""
    fits = all(side % size_multiple == 0 for side in x.shape[2:])
    if not fits or (larger and min(x.shape[2:]) <= size_multiple):
        raise ConfigError(
            f"the {network} halves the image {size_multiple.bit_length() - 1} times: its sides must be "
            f"multiples of {size_multiple}{' and larger than it' if larger else ''}, found {x.shape[2]} × {x.shape[3]}"
        )


def _bounded(x: Tensor, y: Tensor, config: GeneratorConfig) -> Tensor:
    """Return the image in [0, 1] for a generator's input x and the last convolution's result y."""
    match config.output:
        case "hard_sigmoid":  # as in Keras; torch's has the slope 1/6
            return (0.2 * y + 0.5).clamp(0.0, 1.0)
        case "sigmoid":
            return torch.sigmoid(y)
        case "tanh":
            return 0.5 * torch.tanh(y) + 0.5
        case "residual":
            return (x + y).clamp(0.0, 1.0)
    raise ValueError(f"unknown output {config.output!r}")
