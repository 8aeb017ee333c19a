"""The losses of the four networks: the scalars to minimise, and the terms to log.

One kernel launch computes each scalar to minimise, over all its terms. The same launch also returns values for the log.
`StepLosses.terms` makes the named terms of `metrics.jsonl` from them, and only when it is called.

With the "vologan" routing, the two generators minimise `generator_st/total` and `generator_ts/total`. With "cyclegan",
both minimise the sum of the two.

The terms of cycle, identity and SSIM compare an image with a result for it, in the image's domain "s" or "t". They are
logged for the generator that makes images of this domain. So `generator_st` has the terms of "t".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, Self, TypeVar

import torch
from torch import Tensor
from vologan_kernels import adversarial_losses, pixel_losses
from vologan_kernels.adversarial_loss import Role
from vologan_kernels.device import constants
from vologan_kernels.pixel_loss import METRICS

from vologan_fast.config import CHANNELS, LossConfig
from vologan_fast.training.cutmix import Mixture, cutmix_loss

Logits = Sequence[Tensor]
"""Outputs of one discriminator for a batch, with different shapes."""
Domain = Literal["s", "t"]
"""Domain of an image."""

_ADVERSARIAL = {"mse": "lsgan", "bce": "bce", "hinge": "hinge", "hinge_both": "hinge_both", "wgan": "wgan"}
"""Names in the configuration → names in the kernels."""
_L1, _L2, _SSIM = range(3)
"""Indices of the metrics of `pixel_losses`."""
DEFAULT_WEIGHTS = {channels.number: channels.weights for channels in CHANNELS.values()}
"""Weights of the channels in the pixel and SSIM terms, by the number of channels."""
AnyLosses = TypeVar("AnyLosses", bound="Losses")
_ROLES: list[Role] = ["real", "fake"]
_LABELS, _CONSISTENCY = range(2)
"""Indices of the parts of `mixture_loss`."""


def losses_at(config: LossConfig, progress: float) -> LossConfig:
    """Return the settings of one step, whose `pixel` is "l1" or "l2". Its `cutmix` is the probability at this step.

    `progress` is the fraction of the schedule's epochs that were over when the step's epoch began.
    """
    if config.pixel == "l1_then_l2":
        config = replace(config, pixel="l2" if progress >= config.pixel_switch_at else "l1")
    if config.cutmix and config.cutmix_ramp:
        config = replace(config, cutmix=config.cutmix * min(1.0, progress / config.cutmix_ramp))
    return config


def adversarial_loss(config: LossConfig, judged: Sequence[Logits], share: float = 1.0) -> tuple[Tensor, Tensor]:
    """Return the adversarial loss of the generators, and the mean loss of each discriminator output.

    `judged` has one entry per generator: the discriminator's outputs for its translations. The loss to minimise is
    multiplied by `share`. The mean losses have the shape (len(judged), K), for K outputs.
    """
    logits = [z for outputs in judged for z in outputs]
    kind, weights = _ADVERSARIAL[config.adversarial], [share] * len(logits)
    loss, means = adversarial_losses(logits, ["generator"] * len(logits), kind, weights=weights)
    return loss, means.view(len(judged), -1)


def reconstruction_loss(
    config: LossConfig, images: Mapping[Domain, Sequence[Tensor]], share: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Return the cycle, SSIM and identity loss of the generators, and the metrics of `pixel_losses`.

    `config` is from `losses_at`. `images` has one entry per domain, whose images have one shape. An entry holds a batch
    of the domain, then the cycle of this batch. In steps with identity, it also holds the result of the generator whose
    outputs are in this domain, for this batch.

    The loss to minimise is multiplied by `share`. The metrics, for each cycle and each identity, have the shape
    (2 · len(images), 3, C), or (len(images), 3, C) without identity. If the domains have different channels, their
    weighted sums take the place of the channels: C is 1. `config.channel_weights` is empty then.
    """
    if not config.channel_weights:
        return _of_different_channels(config, images, share)
    weight_of = {"l1": lambda weight: (weight, 0.0), "l2": lambda weight: (0.0, weight)}[config.pixel]
    pairs, weights = [], []
    for domain, (image, *both) in images.items():
        of_terms = _weights(config, domain)
        cycle = (*weight_of(share * of_terms.cycle), share * of_terms.ssim)
        identity = (*weight_of(share * of_terms.identity * config.identity_every), 0.0)
        pairs += [(changed, image) for changed in both]
        weights += [cycle, identity][: len(both)]
    return pixel_losses(pairs, weights, _channel_weights(config), statistics=config.ssim_statistics)


def _of_different_channels(
    config: LossConfig, images: Mapping[Domain, Sequence[Tensor]], share: float
) -> tuple[Tensor, Tensor]:
    """Return what `reconstruction_loss` returns, for domains with different channels."""
    losses, sums = [], []
    for domain, of_domain in images.items():
        weighted = replace(config, channel_weights=DEFAULT_WEIGHTS[of_domain[0].shape[1]])
        loss, metrics = reconstruction_loss(weighted, {domain: of_domain}, share)
        losses.append(loss)
        sums.append((metrics * _channel_weights_like(metrics, weighted)).sum(2, keepdim=True))
    return torch.stack(losses).sum(), torch.cat(sums)


def mixture_loss(
    config: LossConfig, mixed: Mixture, logits: Logits, real: Logits, fake: Logits
) -> tuple[Tensor, Tensor]:
    """Return a discriminator's loss for mixtures, and its parts as in `cutmix_loss`.

    `logits`, `real` and `fake` are its outputs (whole, pixels) for the mixtures and for the images that were mixed.
    """
    kind, (whole, pixels) = _ADVERSARIAL[config.adversarial], logits
    return cutmix_loss(kind, mixed, whole, pixels, real[1], fake[1], config.cutmix_consistency)


def discriminator_loss(
    config: LossConfig, judged: Sequence[tuple[Logits, Logits]], share: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Return the loss of the discriminators, and the mean loss of each output.

    `judged` has one entry per discriminator: its outputs for real and for fake images, each with weight 1/2. The loss
    to minimise is multiplied by `share`. The mean losses have the shape (len(judged), 2, K), for K outputs.
    """
    logits = [z for of_kinds in judged for outputs in of_kinds for z in outputs]
    roles = [role for of_kinds in judged for role, outputs in zip(_ROLES, of_kinds, strict=True) for _ in outputs]
    kind, weights = _ADVERSARIAL[config.adversarial], [0.5 * share] * len(logits)
    loss, means = adversarial_losses(logits, roles, kind, weights=weights)
    return loss, means.view(len(judged), 2, -1)


class _Weights(NamedTuple):
    cycle: float
    identity: float
    ssim: float


def _weights(config: LossConfig, domain: Domain) -> _Weights:
    """Return the weights of the terms of one domain's images."""
    both = _Weights(config.cycle, config.identity, config.ssim)
    if domain == "s":
        return both
    of_t = config.cycle_t, config.identity_t, config.ssim_t
    return _Weights(*(own if own is not None else of_both for own, of_both in zip(of_t, both, strict=True)))


def _channel_weights(config: LossConfig) -> Sequence[float] | Sequence[Sequence[float]]:
    """Return the channels' weights, as `pixel_losses` takes them: (C,) for all metrics, or (3, C)."""
    channels = config.channel_weights
    if config.reduction == "channels":
        return channels
    step = 2 if config.reduction == "signed_image" else 1  # differences in [-1, 1] are twice as large
    of_l1, of_l2 = ([step**power / len(channels)] * len(channels) for power in (1, 2))
    return [of_l1, of_l2, channels]  # the SSIM has no other reduction


def _channel_weights_like(metrics: Tensor, config: LossConfig) -> Tensor:
    """Return the channels' weights as a factor of `metrics` (…, 3, C): (C,) or (3, C)."""
    weights = _channel_weights(config)
    rows = [row if isinstance(row, Sequence) else (row,) for row in weights]
    flat = constants(tuple(weight for row in rows for weight in row), metrics.device, metrics.dtype)
    return flat.view(len(METRICS), -1) if isinstance(weights[0], Sequence) else flat


@dataclass(frozen=True)
class Losses:
    """The losses of one step, without gradients. They stay on the device until they are read."""

    def terms(self) -> dict[str, Tensor]:
        """Return each weighted term by its name, and each network's total, as scalars on the tensors' device."""
        raise NotImplementedError

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors among the fields, by name."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    def on_host(self) -> Self:
        """Return a copy in host memory. From a GPU, it is complete once the stream has reached this point."""
        copies = {}
        for name, tensor in self.tensors().items():
            host = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
            copies[name] = host.copy_(tensor, non_blocking=True)
        return dataclasses.replace(self, **copies)


def mean_losses(parts: Sequence[tuple[float, AnyLosses]]) -> AnyLosses:
    """Return the losses of a whole batch from the (share, losses) of its parts."""
    (_, first), *others = parts
    if not others:
        return first
    means = {
        name: torch.stack([share * losses.tensors()[name] for share, losses in parts]).sum(0)
        for name in first.tensors()
    }
    return dataclasses.replace(first, **means)


@dataclass(frozen=True)
class StepLosses(Losses):
    """The losses of one step of a CycleGAN."""

    config: LossConfig
    """The settings of this step, from `losses_at`."""
    generator_outputs: Tensor
    """(2, K): mean loss of each of the K outputs of D_T for translations by G_ST, then of D_S for translations by
    G_TS."""
    metrics: Tensor
    """(4, 3, C): L1, L2 and 1 − SSIM of G_ST's cycle, G_ST's identity, G_TS's cycle, G_TS's identity. (2, 3, C) in a
    step without identity: the two cycles. (2, 3, 1) for domains with different channels: their weighted sums."""
    discriminator_outputs: Tensor
    """(2, 2, K): mean loss of each output of D_S for real and for fake images, then the same of D_T."""
    penalties: Tensor | None = None
    """(2,): gradient penalty of D_S and of D_T, without weight. None in a step without penalty."""
    cutmix: Tensor | None = None
    """(2, 2): the two parts of `mixture_loss` of D_S, then of D_T. None in a step without mixtures."""
    hole_share: Tensor | None = None
    """Loss of the share of holes, without weight: a scalar. None without a hole head."""

    def terms(self) -> dict[str, Tensor]:
        """Return each weighted term by its name, and each network's total, as scalars on the tensors' device.

        A step without identity has no identity term, and one without penalty no penalty term. The weight of a term here
        does not include `identity_every` or `penalty_every`.
        """
        config, weighted = self.config, self.metrics
        if config.channel_weights:  # otherwise, `reconstruction_loss` has weighted them
            weighted = weighted * _channel_weights_like(weighted, config)
        metrics = weighted.sum(2).view(2, -1, len(METRICS))  # for each generator: cycle, and identity if there is one
        pixel = _L1 if config.pixel == "l1" else _L2
        terms: dict[str, Tensor] = {}
        domains: tuple[tuple[str, Domain], ...] = ("generator_st", "t"), ("generator_ts", "s")
        for i, (network, domain) in enumerate(domains):
            cycle, *identity = metrics[i].unbind()
            weights = _weights(config, domain)
            of_network = {"adversarial": self.generator_outputs[i].sum(), "cycle": weights.cycle * cycle[pixel]}
            if identity:
                of_network["identity"] = weights.identity * identity[0][pixel]
            of_network["ssim"] = weights.ssim * cycle[_SSIM]
            if domain == "t" and self.hole_share is not None:
                of_network["hole_share"] = config.hole_share * self.hole_share
            terms |= with_total(network, of_network)
        for i, network in enumerate(("discriminator_s", "discriminator_t")):
            penalty = None if self.penalties is None else self.penalties[i]
            cutmix = None if self.cutmix is None else self.cutmix[i]
            of_network = discriminator_terms(config, self.discriminator_outputs[i], penalty, cutmix)
            terms |= with_total(network, of_network)
        return terms


def discriminator_terms(
    config: LossConfig, outputs: Tensor, penalty: Tensor | None, cutmix: Tensor | None
) -> dict[str, Tensor]:
    """Return the weighted terms of a discriminator.

    `outputs` (2, K) are the mean losses of its outputs for real and for fake images, and `cutmix` (2,) the parts of
    `mixture_loss`.
    """
    real, fake = 0.5 * outputs.sum(1)
    terms = {"real": real, "fake": fake}
    if penalty is not None:
        terms["penalty"] = config.penalty_weight * penalty
    if cutmix is not None:
        terms["cutmix"] = 0.5 * cutmix[_LABELS]
        terms["consistency"] = config.cutmix_consistency * cutmix[_CONSISTENCY]
    return terms


def with_total(network: str, terms: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the terms of a network and their sum, `total`, with the name of the network before each name."""
    total = torch.stack(list(terms.values())).sum()
    return {f"{network}/{name}": value for name, value in (terms | {"total": total}).items()}
