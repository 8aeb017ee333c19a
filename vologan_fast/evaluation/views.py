"""Images of any channels as the measures look at them: as RGB-D images (N, 4, H, W).

The measures are defined on RGB-D. Other images are shown to them as follows, and the measures of an absent part are
left out (`Judge`).

- Grey is shown as three equal colours.
- Absent depth is 0 everywhere.
- Absent colour is 1 on the figure and 0 in the background. So holes of depth alone are holes of the figure.

The *figure* is what `vologan_fast.translate` may change: all pixels but the background. In images with colour and
depth, 0 in all channels is background. In depth alone, 0 is background if the files have a value for it, else a hole.
Without depth there is no background.

`View` also shows the images S in the channels of T, if these differ: colour becomes grey, or grey colour. A part that
only T has is T's mean.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vologan_fast.config import DOMAINS, Channels, DataConfig, DepthSpec
from vologan_fast.evaluation.distances import foreground
from vologan_fast.evaluation.inputs import Images
from vologan_fast.evaluation.judge import Judge
from vologan_fast.evaluation.sensor import HOLE

_LUMA = (0.299, 0.587, 0.114)
"""The weights of red, green and blue in grey (Rec. 601)."""


@dataclass(frozen=True)
class Kind:
    """What the images of a domain hold."""

    channels: Channels
    has_background: bool
    """Whether their depth files have a value for background."""

    @staticmethod
    def of(config: DataConfig, domain: str) -> Kind:
        """Return the kind of a domain's images."""
        spec: DepthSpec = getattr(config, domain)
        return Kind(config.channel_sets[domain], spec.background is not None)

    def figure(self, images: Tensor) -> Tensor:
        """Return (N, 1, H, W) float: 1 on the figure of images (N, C, H, W), 0 in the background."""
        if not self.channels.depth or not (self.channels.color or self.has_background):
            return torch.ones_like(images[:, :1])
        return (images.amax(1, keepdim=True) >= HOLE).to(images.dtype)

    def as_rgbd(self, images: Tensor, figure: Tensor | None = None) -> Tensor:
        """Return images (N, C, H, W) as RGB-D: (N, 4, H, W). `figure` is that of the images that they were made of."""
        color, depth = images.split([self.channels.color, int(self.channels.depth)], 1)
        if not self.channels.color:
            color = self.figure(images) if figure is None else self.figure(images) * figure
        if not self.channels.depth:
            depth = torch.zeros_like(images[:, :1])
        return images if self.channels.number == 4 else torch.cat([color.expand(-1, 3, -1, -1), depth], 1)


@dataclass(frozen=True)
class View:
    """Shows the images of two domains in the channels of T, the domain that translations should resemble."""

    source: Kind
    target: Kind
    mean: Tensor
    """(4,): the mean of T's images over the foreground (`distances`), of depth where it is measured."""

    @staticmethod
    def of(config: DataConfig, source: str, real: Tensor) -> View:
        """Return the view for images of the domain `source`. `real` (M, C, H, W) are images of the other one."""
        target = Kind.of(config, next(domain for domain in DOMAINS if domain != source))
        shown = target.as_rgbd(real)
        seen = torch.cat([foreground(shown).expand(-1, 3, -1, -1), shown[:, 3:] > 0], 1).double()
        mean = (shown * seen).sum((0, 2, 3)) / seen.sum((0, 2, 3)).clamp_min(1)
        return View(Kind.of(config, source), target, mean.to(real.dtype))

    def real(self, images: Tensor) -> Tensor:
        """Return images of T."""
        return self.target.as_rgbd(images)

    def untranslated(self, images: Tensor) -> Tensor:
        """Return images of S as they are, as far as T has such channels."""
        before, after = self.source.channels, self.target.channels
        if before == after:
            return self.source.as_rgbd(images)
        color, depth = self.source.as_rgbd(images).split([3, 1], 1)
        figure = self.source.figure(images)
        mean = self.mean.view(1, 4, 1, 1)
        if not before.color:
            color = mean[:, :3] * figure
        if not before.depth:
            depth = mean[:, 3:] * figure
        if after.color == 1:
            color = (color * color.new_tensor(_LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)
        parts = [color[:, : after.color], depth[:, : int(after.depth)]]
        return self.target.as_rgbd(torch.cat(parts, 1), figure)

    def translated(self, translations: Tensor, images: Tensor) -> Tensor:
        """Return translations (N, C, H, W) of images of S."""
        return self.target.as_rgbd(translations, self.source.figure(images))

    def judge(self, synthetic: Tensor, real: Tensor, **options: Any) -> Judge:
        """Return the judge for images S (N, C, H, W) and T (M, C, H, W). The options are those of `Judge`."""
        figure = self.source.figure(synthetic)
        return Judge(
            self.untranslated(synthetic),
            self.real(real),
            channels=self.target.channels,
            figure=figure,
            **options,
        )

    def fitted(self, synthetic: Images, real: Images) -> tuple[Images, Images]:
        """Return images of both domains as RGB-D, to fit baselines on."""
        shown = self.untranslated(synthetic.pixels), self.real(real.pixels)
        return Images(shown[0], synthetic.names), Images(shown[1], real.names)

    def baseline(self, translate: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """Return a map of RGB-D images without its changes to parts that T lacks."""
        there = torch.tensor([self.target.channels.color > 0] * 3 + [self.target.channels.depth]).view(1, 4, 1, 1)
        return lambda images: torch.where(there, translate(images), images)
