"""The training step of a CycleGAN, over its four networks.

All networks learn from the same forward passes, and all change at the end of the step. With the batches S and T,

    fake_t = G_ST(S)    cycled_s = G_TS(fake_t)    same_s = G_TS(S)
    fake_s = G_TS(T)    cycled_t = G_ST(fake_s)    same_t = G_ST(T)

Routing "vologan": each generator learns only from the losses in its own output domain. For example, G_ST learns from
D_T(fake_t), cycled_t and same_t. The inner generator of a cycle gets no gradient from it, so the cycle starts from a
detached translation.
Routing "cyclegan": both generators learn from the sum of all losses, with gradients through all passes.

A hole head (`networks/stochastic.py`) learns from D_T, and from the share of holes in T. cycled_t and same_t have the
holes of T, because they should be equal to it. The holes of fake_t get no gradient from cycled_s.

`PlainStep` does exactly this. `FastStep` (`fast_step.py`) gives the same gradients with less memory and larger batches.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from vologan_fast.config import LossConfig
from vologan_fast.training.compilation import uncompiled
from vologan_fast.training.losses import (
    StepLosses,
    adversarial_loss,
    discriminator_loss,
    losses_at,
    reconstruction_loss,
)
from vologan_fast.training.places import ALL_GRADIENTS
from vologan_fast.training.step import (
    D_S,
    D_T,
    FAKE,
    REAL,
    ST,
    TS,
    Plan,
    SampleKeys,
    TrainingStep,
    Translation,
    frozen,
)

CYCLE, IDENTITY = 1, 2
"""Passes of a generator beside TRANSLATION. Passes that form one batch have neighbouring indices."""


@dataclass
class Translations:
    """Images that the generators make from a batch: (N, C, H, W) in [0, 1], float32.

    `same_s` and `same_t` are None in a step without identity.
    """

    fake_t: Tensor
    fake_s: Tensor
    cycled_s: Tensor
    cycled_t: Tensor
    same_s: Tensor | None = None
    same_t: Tensor | None = None
    to_t: Translation | None = None
    """All parts of fake_t."""

    def rows(self, synthetic: Tensor, real: Tensor) -> dict[str, list[tuple[Tensor, ...]]]:
        """Return the rows of a sample grid, by their name: input, translation and cycle of each image."""
        return {
            "S to T": list(zip(synthetic, self.fake_t, self.cycled_s, strict=True)),
            "T to S": list(zip(real, self.fake_s, self.cycled_t, strict=True)),
        }


class CycleStep(TrainingStep):
    """What the two steps of a CycleGAN share: the passes, and the losses of held-out images."""

    @torch.no_grad()
    def evaluate(
        self, synthetic: Tensor, real: Tensor, progress: float = 0.0, first_image: int = 0
    ) -> tuple[StepLosses, Translations]:
        self.networks.eval()
        losses = losses_at(self.config, progress)
        with self._normalised(self.networks.translators), uncompiled():
            identity = self.networks.have_identity
            keys = self._fixed_keys(synthetic, first_image)
            images = self.translate(self.networks.translators, synthetic, real, keys, identity=identity)
            _, outputs, metrics, shares = self._judge_generators(synthetic, real, images, losses)
            _, of_discriminators, _ = self._judge_images(synthetic, real, images)
        return StepLosses(losses, outputs, metrics, of_discriminators, hole_share=shares), images

    def translate(
        self,
        generators: nn.ModuleList,
        synthetic: Tensor,
        real: Tensor,
        keys: SampleKeys,
        *,
        detach_cycles: bool = False,
        identity: bool = True,
    ) -> Translations:
        """Return all translations of the batch: S to T and T to S, cycles and, with `identity`, identities.

        With `detach_cycles`, a cycle gives no gradient to its inner generator.
        """

        def remade(of: int, images: Tensor, of_pass: int, like: Tensor) -> Tensor:
            return self._remake(generators[of], images, keys, of, of_pass, like=like)

        with self._autocast(synthetic):
            to_t, to_s = (
                self._translate(generators[of], images, keys, of) for of, images in ((ST, synthetic), (TS, real))
            )
            inner_t, inner_s = to_t.inner, to_s.inner
            if detach_cycles:
                inner_t, inner_s = inner_t.detach(), inner_s.detach()
            return Translations(
                fake_t=to_t.image,
                fake_s=to_s.image,
                cycled_s=remade(TS, inner_t, CYCLE, synthetic),
                cycled_t=remade(ST, inner_s, CYCLE, real),
                same_s=remade(TS, synthetic, IDENTITY, synthetic) if identity else None,
                same_t=remade(ST, real, IDENTITY, real) if identity else None,
                to_t=to_t,
            )

    def _judge_generators(
        self,
        synthetic: Tensor,
        real: Tensor,
        images: Translations,
        losses: LossConfig,
        keys: SampleKeys | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Return the loss of both generators, and for the log the parts of it.

        These are the mean losses of the discriminators' outputs, the image metrics, and the loss of the share of holes.
        """
        with self._autocast(synthetic):
            logits_t = self._judge(self.networks.discriminator_t, images.fake_t, keys, D_T, FAKE)
            logits_s = self._judge(self.networks.discriminator_s, images.fake_s, keys, D_S, FAKE)
        adversarial, outputs = adversarial_loss(self.config, [logits_t, logits_s])
        of_t, of_s = [real, images.cycled_t], [synthetic, images.cycled_s]
        if images.same_t is not None and images.same_s is not None:
            of_t, of_s = [*of_t, images.same_t], [*of_s, images.same_s]
        reconstruction, metrics = reconstruction_loss(losses, {"t": of_t, "s": of_s})
        assert images.to_t is not None
        loss, shares = adversarial + reconstruction, None
        if (of_holes := self._hole_share(images.to_t, synthetic, real)) is not None:
            loss, shares = loss + of_holes[0], of_holes[1]
        return loss, outputs, metrics, shares

    def _judge_images(
        self,
        synthetic: Tensor,
        real: Tensor,
        images: Translations,
        keys: SampleKeys | None = None,
        losses: LossConfig | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the loss of both discriminators, the mean loss of each of their outputs, and those of mixtures.

        With `losses` from `losses_at`, there may be mixtures.
        """
        discriminator_s, discriminator_t = self.networks.discriminator_s, self.networks.discriminator_t
        with self._autocast(synthetic):
            of_s = (
                self._judge(discriminator_s, synthetic, keys, D_S, REAL),
                self._judge(discriminator_s, images.fake_s.detach(), keys, D_S, FAKE),
            )
            of_t = (
                self._judge(discriminator_t, real, keys, D_T, REAL),
                self._judge(discriminator_t, images.fake_t.detach(), keys, D_T, FAKE),
            )
        loss, outputs = discriminator_loss(self.config, [of_s, of_t])
        if keys is None or losses is None or not losses.cutmix:
            return loss, outputs, None
        pairs = (synthetic, images.fake_s.detach()), (real, images.fake_t.detach())
        mixed_s, parts_s = self._judge_mixtures(discriminator_s, pairs[0], of_s, losses, keys, D_S)
        mixed_t, parts_t = self._judge_mixtures(discriminator_t, pairs[1], of_t, losses, keys, D_T)
        return loss + mixed_s + mixed_t, outputs, torch.stack((parts_s, parts_t))


class PlainStep(CycleStep):
    """The step as the method is written down.

    It makes six generator passes, one backward for the sum of the generators' losses, and one for the sum of the
    discriminators' losses.
    """

    def gradients(self, synthetic: Tensor, real: Tensor, keys: SampleKeys, plan: Plan) -> StepLosses:
        with self.around(ALL_GRADIENTS):
            return self._gradients(synthetic, real, keys, plan)

    def _gradients(self, synthetic: Tensor, real: Tensor, keys: SampleKeys, plan: Plan) -> StepLosses:
        images = self.translate(
            self.networks.generators,
            synthetic,
            real,
            keys,
            detach_cycles=self.config.routing == "vologan",
            identity=plan.identity,
        )
        with frozen(self.networks.discriminators):
            loss, outputs, metrics, shares = self._judge_generators(synthetic, real, images, plan.losses, keys)
            loss.backward()
        self._complete(*self.networks.generators)
        images = replace(
            images,
            fake_s=self._judged_later(images.fake_s, keys, D_S),
            fake_t=self._judged_later(images.fake_t, keys, D_T),
        )
        loss, of_discriminators, of_mixtures = self._judge_images(synthetic, real, images, keys, plan.losses)
        penalties = None
        if plan.penalty:
            of_s, penalty_s = self._penalty(self.networks.discriminator_s, synthetic, images.fake_s, keys, D_S)
            of_t, penalty_t = self._penalty(self.networks.discriminator_t, real, images.fake_t, keys, D_T)
            loss, penalties = loss + of_s + of_t, torch.stack((penalty_s, penalty_t))
        loss.backward()
        self._complete(*self.networks.discriminators)
        return StepLosses(plan.losses, outputs, metrics, of_discriminators, penalties, of_mixtures, shares)
