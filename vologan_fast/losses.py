"""The losses of the four networks: what is minimised, and the terms that are logged.

A training step needs two scalars, one that the generators' gradients come from and one for the discriminators'. Each is
the result of few launches over everything it consists of. The terms by their names (those of `metrics.jsonl`) are made
of the same launches' by-products, and only where somebody reads them: `StepLosses.terms`.

`generator_st/total` and `generator_ts/total` are the sums that the two generators minimise under the "vologan" routing;
under "cyclegan" both minimise the sum of the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from vologan_kernels import adversarial_losses, pixel_losses

from vologan_fast.config import LossConfig

Logits = Sequence[Tensor]
"""What a discriminator says of a batch: its outputs, of different shapes."""

_ADVERSARIAL = {"mse": "lsgan", "bce": "bce", "hinge": "hinge", "wgan": "wgan"}
"""Names of the configuration → names of the kernels."""
_L1, _L2, _SSIM = range(3)
"""Metrics of `pixel_losses`."""


@dataclass(frozen=True)
class GeneratorLosses:
    """Of both generators; st translates S to T."""

    total: Tensor
    """() with a gradient: the sum of all terms."""
    outputs: Tensor
    """(2, K): mean loss of each of the K outputs of D_T, then of D_S."""
    metrics: Tensor
    """(4, 3, C): L1, L2, 1 − SSIM of st's cycle, st's identity, ts's cycle, ts's identity."""


@dataclass(frozen=True)
class DiscriminatorLosses:
    """Of both discriminators."""

    total: Tensor
    """() with a gradient: the sum of all terms."""
    outputs: Tensor
    """(2, 2, K): mean loss of each output of D_S for real and for fake images, then of D_T."""


def generator_losses(
    config: LossConfig, logits_t: Logits, logits_s: Logits, st: Sequence[Tensor], ts: Sequence[Tensor]
) -> GeneratorLosses:
    """`logits_t`: D_T's outputs for st's translations; `logits_s`: D_S's for those of ts.

    `st`: an image of st's output domain; the same after the way there and back, ending with st; and st applied to it.
    `ts`: likewise, of the same shape.
    """
    weight_of = {"l1": lambda weight: (weight, 0.0), "l2": lambda weight: (0.0, weight)}[config.pixel]
    weights = [(*weight_of(config.cycle), config.ssim), (*weight_of(config.identity), 0.0)] * 2
    pairs = [(changed, image) for image, *both in (st, ts) for changed in both]
    pixel, metrics = pixel_losses(pairs, weights, config.channel_weights, statistics=config.ssim_statistics)
    logits = [*logits_t, *logits_s]
    adversarial, outputs = adversarial_losses(logits, ["generator"] * len(logits), _ADVERSARIAL[config.adversarial])
    return GeneratorLosses(pixel + adversarial, outputs.view(2, -1), metrics)


def discriminator_losses(
    config: LossConfig, real_s: Logits, fake_s: Logits, real_t: Logits, fake_t: Logits
) -> DiscriminatorLosses:
    """D_S's outputs for real and fake images of S, and D_T's for those of T; each loss is halved."""
    outputs = len(real_s)
    logits = [*real_s, *fake_s, *real_t, *fake_t]
    roles = (["real"] * outputs + ["fake"] * outputs) * 2
    kind = _ADVERSARIAL[config.adversarial]
    total, means = adversarial_losses(logits, roles, kind, weights=[0.5] * len(logits))  # type: ignore[arg-type]
    return DiscriminatorLosses(total, means.view(2, 2, -1))


@dataclass(frozen=True)
class StepLosses:
    """What one step's losses were, without gradients: on the device, until somebody reads them."""

    config: LossConfig
    generator_outputs: Tensor
    metrics: Tensor
    discriminator_outputs: Tensor

    @classmethod
    def of(cls, config: LossConfig, generators: GeneratorLosses, discriminators: DiscriminatorLosses) -> StepLosses:
        return cls(config, generators.outputs, generators.metrics, discriminators.outputs)

    def on_host(self) -> StepLosses:
        """A copy in host memory; from a GPU it is there when the stream has come to this point."""
        copies = []
        for tensor in (self.generator_outputs, self.metrics, self.discriminator_outputs):
            host = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
            copies.append(host.copy_(tensor, non_blocking=True))
        return StepLosses(self.config, *copies)

    def terms(self) -> dict[str, Tensor]:
        """Every weighted term by its name, and each network's total; scalars on the tensors' device."""
        config = self.config
        metrics = (self.metrics * self.metrics.new_tensor(config.channel_weights)).sum(2)
        pixel = _L1 if config.pixel == "l1" else _L2
        terms: dict[str, Tensor] = {}
        for i, network in enumerate(("generator_st", "generator_ts")):
            cycle, identity = metrics[2 * i], metrics[2 * i + 1]
            of_network = {
                "adversarial": self.generator_outputs[i].sum(),
                "cycle": config.cycle * cycle[pixel],
                "identity": config.identity * identity[pixel],
                "ssim": config.ssim * cycle[_SSIM],
            }
            terms |= _with_total(network, of_network)
        for i, network in enumerate(("discriminator_s", "discriminator_t")):
            real, fake = 0.5 * self.discriminator_outputs[i].sum(1)
            terms |= _with_total(network, {"real": real, "fake": fake})
        return terms


def _with_total(network: str, terms: dict[str, Tensor]) -> dict[str, Tensor]:
    total = torch.stack(list(terms.values())).sum()
    return {f"{network}/{name}": value for name, value in (terms | {"total": total}).items()}
