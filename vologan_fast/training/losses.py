"""The losses of the four networks: what is minimised, and the terms that are logged.

Each scalar that a gradient comes from is the result of one launch over everything it consists of. The terms by their
names (those of `metrics.jsonl`) are made of the same launches' by-products, and only where somebody reads them:
`StepLosses.terms`.

`generator_st/total` and `generator_ts/total` are the sums that the two generators minimise under the "vologan" routing;
under "cyclegan" both minimise the sum of the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from vologan_kernels import adversarial_losses, pixel_losses
from vologan_kernels.adversarial_loss import Role
from vologan_kernels.pixel_loss import METRICS

from vologan_fast.config import LossConfig

Logits = Sequence[Tensor]
"""What a discriminator says of a batch: its outputs, of different shapes."""

_ADVERSARIAL = {"mse": "lsgan", "bce": "bce", "hinge": "hinge", "wgan": "wgan"}
"""Names of the configuration → names of the kernels."""
_L1, _L2, _SSIM = range(3)
"""Metrics of `pixel_losses`."""
_ROLES: list[Role] = ["real", "fake"]


def adversarial_loss(config: LossConfig, judged: Sequence[Logits], share: float = 1.0) -> tuple[Tensor, Tensor]:
    """Of generators: what the discriminators say of their translations, one entry of `judged` a generator.

    Returns the loss to minimise, times `share`, and the mean loss of each output, (len(judged), K).
    """
    logits = [z for outputs in judged for z in outputs]
    kind, weights = _ADVERSARIAL[config.adversarial], [share] * len(logits)
    loss, means = adversarial_losses(logits, ["generator"] * len(logits), kind, weights=weights)
    return loss, means.view(len(judged), -1)


def reconstruction_loss(
    config: LossConfig, images: Sequence[Sequence[Tensor]], share: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Cycle, SSIM and identity of generators, one entry of `images` a generator, all of one shape.

    An entry: an image of the generator's output domain; the same after the way there and back, ending with this
    generator; and, in the steps that have an identity, the generator applied to it. Returns the loss to minimise, times
    `share`, and the metrics of `pixel_losses` for every cycle and identity: (2 or 1 · len(images), 3, C).
    """
    weight_of = {"l1": lambda weight: (weight, 0.0), "l2": lambda weight: (0.0, weight)}[config.pixel]
    cycle = (*weight_of(share * config.cycle), share * config.ssim)
    identity = (*weight_of(share * config.identity * config.identity_every), 0.0)
    pairs = [(changed, image) for image, *both in images for changed in both]
    weights = [weight for _, *both in images for weight in (cycle, identity)[: len(both)]]
    return pixel_losses(pairs, weights, config.channel_weights, statistics=config.ssim_statistics)


def discriminator_loss(
    config: LossConfig, judged: Sequence[tuple[Logits, Logits]], share: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Of discriminators: an entry is what one says of real images and of fake ones; each is halved.

    Returns the loss to minimise, times `share`, and the mean loss of each output, (len(judged), 2, K).
    """
    logits = [z for of_kinds in judged for outputs in of_kinds for z in outputs]
    roles = [role for of_kinds in judged for role, outputs in zip(_ROLES, of_kinds, strict=True) for _ in outputs]
    kind, weights = _ADVERSARIAL[config.adversarial], [0.5 * share] * len(logits)
    loss, means = adversarial_losses(logits, roles, kind, weights=weights)
    return loss, means.view(len(judged), 2, -1)


@dataclass(frozen=True)
class StepLosses:
    """What one step's losses were, without gradients: on the device, until somebody reads them."""

    config: LossConfig
    generator_outputs: Tensor
    """(2, K): mean loss of each of the K outputs of D_T for st's translations, then of D_S for those of ts."""
    metrics: Tensor
    """(4, 3, C): L1, L2, 1 − SSIM of st's cycle, st's identity, ts's cycle, ts's identity. (2, 3, C) in a step without
    identity."""
    discriminator_outputs: Tensor
    """(2, 2, K): mean loss of each output of D_S for real and for fake images, then of D_T."""

    def on_host(self) -> StepLosses:
        """A copy in host memory; from a GPU it is there when the stream has come to this point."""
        copies = []
        for tensor in (self.generator_outputs, self.metrics, self.discriminator_outputs):
            host = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
            copies.append(host.copy_(tensor, non_blocking=True))
        return StepLosses(self.config, *copies)

    def terms(self) -> dict[str, Tensor]:
        """Every weighted term by its name, and each network's total; scalars on the tensors' device.

        A step without identity has no term of it. The weight of one that has it does not grow with `identity_every`.
        """
        config = self.config
        weighted = (self.metrics * self.metrics.new_tensor(config.channel_weights)).sum(2)
        metrics = weighted.view(2, -1, len(METRICS))  # of each generator: cycle and, it may be, identity
        pixel = _L1 if config.pixel == "l1" else _L2
        terms: dict[str, Tensor] = {}
        for i, network in enumerate(("generator_st", "generator_ts")):
            cycle, *identity = metrics[i].unbind()
            of_network = {"adversarial": self.generator_outputs[i].sum(), "cycle": config.cycle * cycle[pixel]}
            if identity:
                of_network["identity"] = config.identity * identity[0][pixel]
            of_network["ssim"] = config.ssim * cycle[_SSIM]
            terms |= _with_total(network, of_network)
        for i, network in enumerate(("discriminator_s", "discriminator_t")):
            real, fake = 0.5 * self.discriminator_outputs[i].sum(1)
            terms |= _with_total(network, {"real": real, "fake": fake})
        return terms


def _with_total(network: str, terms: dict[str, Tensor]) -> dict[str, Tensor]:
    total = torch.stack(list(terms.values())).sum()
    return {f"{network}/{name}": value for name, value in (terms | {"total": total}).items()}
