"""The loss terms of the four networks, with their weights.

The names of the terms are those of `metrics.jsonl`. `generator_st` and `generator_ts` are the sums that the two
generators minimise under the "vologan" routing; under "cyclegan" both minimise the sum of the two.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from vologan_kernels import adversarial_loss, global_ssim, weighted_l1, weighted_l2

from vologan_fast.config import LossConfig

_PIXEL_LOSSES = {"l1": weighted_l1, "l2": weighted_l2}


def generator_losses(
    config: LossConfig, logits: Sequence[Tensor], image: Tensor, cycled: Tensor, same: Tensor
) -> dict[str, Tensor]:
    """Terms of the losses in one generator's output domain, weighted, and their `total`.

    `logits`: the discriminator's outputs for the generator's translations. `image`: an image of the output domain;
    `cycled`: the same after the way there and back, ending with this generator; `same`: the generator applied to it.
    """
    pixel = _PIXEL_LOSSES[config.pixel]
    terms = {
        "adversarial": adversarial_loss(logits, "generator", config.adversarial),
        "cycle": config.cycle * pixel(cycled, image, config.channel_weights),
        "identity": config.identity * pixel(same, image, config.channel_weights),
        "ssim": config.ssim * global_ssim(cycled, image, config.channel_weights, config.ssim_statistics),
    }
    return terms | {"total": sum_of(terms)}


def discriminator_losses(config: LossConfig, real: Sequence[Tensor], fake: Sequence[Tensor]) -> dict[str, Tensor]:
    """Terms of one discriminator, each halved, and their `total`."""
    terms = {
        "real": 0.5 * adversarial_loss(real, "real", config.adversarial),
        "fake": 0.5 * adversarial_loss(fake, "fake", config.adversarial),
    }
    return terms | {"total": sum_of(terms)}


def sum_of(terms: dict[str, Tensor]) -> Tensor:
    """The sum of the terms' values, in their order."""
    values = list(terms.values())
    return sum(values[1:], values[0])
