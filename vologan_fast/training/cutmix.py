"""CutMix for a U-Net discriminator (Schönfeld et al., arXiv 2002.12655).

A rectangle of a translation is pasted into a real image, or a rectangle of a real image into a translation. For such a
mixture, the whole image counts as fake, and each pixel counts as what it is. The rectangle is that of Yun et al. (arXiv
1905.04899). Its sides are sqrt(1 − λ) of the image's, with λ from Beta(1, 1), which is uniform. Its centre is anywhere,
and parts outside the image are cut off. With c the discriminator's logits of pixels and M the mask (1: real), the loss
of a mixture is

    ½ (fake(whole) + mean over pixels of M real(c) + (1 − M) fake(c)) + λ_c mean (c − (M c_real + (1 − M) c_fake))²

The factor ½ is that of the losses of real and fake images. All four terms give gradients to the discriminator. Each
sample is mixed with some probability. The others contribute 0 to the mean over the batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from vologan_kernels.adversarial_loss import elementwise_loss
from vologan_kernels.precision import to_accumulator

from vologan_fast.training.sample_random import CUTMIX, uniform

_LEAST_VISIBLE = 1 / 1024
"""Smallest value of a pixel that shows something: the nearest depth. The smallest colour is 1/255. Background is 0."""


@dataclass(frozen=True)
class Mixture:
    """Mixtures of real images and translations."""

    images: Tensor
    """(N, C, H, W)."""
    real: Tensor
    """The mask M, (N, 1, H, W) bool: whether a pixel comes from the real image."""
    counts: Tensor
    """(N,) bool: whether the sample is mixed. It is not if the rectangle is empty or covers everything."""


def mixture(real: Tensor, fake: Tensor, keys: Tensor, probability: float, keep_background: bool = False) -> Mixture:
    """Mix real images and translations (N, C, H, W) of one domain, with values in [0, 1].

    `keys` (N,) are the samples' keys. With `keep_background`, a pixel at which neither image shows something counts as
    real, so only pixels of objects are labelled as fake.
    """
    drawn, area, row, column, which = uniform(keys, CUTMIX, 5).unbind(1)
    inside = torch.ones((), dtype=torch.bool, device=real.device)
    for dim, centre in ((2, row), (3, column)):
        side = real.shape[dim]
        place = torch.arange(side, device=real.device) + 0.5
        within = (place - side * centre[:, None]).abs() < side * area.sqrt()[:, None] / 2
        inside = inside & within.view((-1, 1, side, 1) if dim == 2 else (-1, 1, 1, side))
    from_real = inside ^ (which < 0.5).view(-1, 1, 1, 1)
    if keep_background:
        shows = torch.maximum(real.amax(1, keepdim=True), fake.amax(1, keepdim=True)) >= _LEAST_VISIBLE
        from_real = from_real | ~shows
    both = from_real.flatten(1).any(1) & ~from_real.flatten(1).all(1)
    return Mixture(torch.where(from_real, real, fake), from_real, both & (drawn < probability))


def cutmix_loss(
    kind: str,
    mixed: Mixture,
    whole: Tensor,
    pixels: Tensor,
    pixels_of_real: Tensor,
    pixels_of_fake: Tensor,
    consistency: float,
) -> tuple[Tensor, Tensor]:
    """Return the loss to minimise, and its two parts without weights for the log: labels and consistency, (2,).

    `kind` is one of the adversarial losses of `vologan_kernels`. `whole` (N, 1, 1, 1) and `pixels` (N, 1, H, W) are the
    discriminator's logits of the mixtures. The last two logits are those of the images that were mixed. `consistency`
    is λ_c.
    """
    from_real = mixed.real
    whole, pixels, of_real, of_fake = (to_accumulator(z) for z in (whole, pixels, pixels_of_real, pixels_of_fake))
    as_labelled = torch.where(from_real, elementwise_loss(pixels, "real", kind), elementwise_loss(pixels, "fake", kind))
    labels = elementwise_loss(whole, "fake", kind).flatten(1).mean(1) + as_labelled.mean((1, 2, 3))
    differences = (pixels - torch.where(from_real, of_real, of_fake)).square().mean((1, 2, 3))
    counts = mixed.counts.to(labels.dtype)
    parts = torch.stack(((counts * labels).mean(), (counts * differences).mean()))
    return 0.5 * parts[0] + consistency * parts[1], parts.detach()
