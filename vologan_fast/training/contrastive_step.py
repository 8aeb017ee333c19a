"""The training step of CUT: one generator from S to T, by contrastive learning (Park et al., arXiv 2007.15651).

With the batches S and T,

    fake_t = G(S)    same_t = G(T)

G minimises the adversarial loss of D_T(fake_t), and the contrastive loss (`contrast.py`) of S with fake_t and of T with
same_t. The features come from G's own encoder, through a projector that learns with G. The features of S and T give no
gradients, as in the authors' code. D_T learns as in a CycleGAN.

A hole head (`networks/stochastic.py`) learns from D_T, and from the share of holes in T. The contrastive losses see
fake_t with the holes of S, and same_t with those of T.

`PlainContrastiveStep` does exactly this. `FastContrastiveStep` gives the same gradients with fewer passes: S and T are
one batch, and the pass that translates them also gives their features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from vologan_kernels.device import constants

from vologan_fast.config import ContrastConfig, LossConfig
from vologan_fast.networks.stochastic import NOISE_OF_QUERIES, as_measured, normal
from vologan_fast.training import places
from vologan_fast.training.compilation import uncompiled
from vologan_fast.training.contrast import at_positions, contrastive_losses, positions
from vologan_fast.training.losses import (
    Losses,
    adversarial_loss,
    discriminator_loss,
    discriminator_terms,
    losses_at,
    mean_losses,
    with_total,
)
from vologan_fast.training.step import (
    D_T,
    FAKE,
    REAL,
    ST,
    TRANSLATION,
    Part,
    Plan,
    SampleKeys,
    TrainingStep,
    Translation,
    frozen,
    parts,
)

IDENTITY = 1
"""The second pass of the generator, beside TRANSLATION."""


@dataclass(frozen=True)
class ContrastiveLosses(Losses):
    """The losses of one step of CUT, without gradients. They stay on the device until they are read."""

    contrast: ContrastConfig
    generator_outputs: Tensor
    """(1, K): mean loss of each of the K outputs of D_T for the translations."""
    contrasts: Tensor
    """(2,): contrastive loss of translation and identity. (1,) in a step without identity."""
    discriminator_outputs: Tensor
    """(1, 2, K): mean loss of each output of D_T for real and for fake images."""
    config: LossConfig
    """The settings of this step, from `losses_at`."""
    penalty: Tensor | None = None
    """The gradient penalty of D_T, without weight. None in a step without penalty."""
    cutmix: Tensor | None = None
    """(2,): the two parts of `mixture_loss`. None in a step without mixtures."""
    hole_share: Tensor | None = None
    """Loss of the share of holes, without weight: a scalar. None without a hole head."""

    def terms(self) -> dict[str, Tensor]:
        of_generator = {"adversarial": self.generator_outputs.sum()}
        weights = {"contrast": self.contrast.weight, "contrast_identity": self.contrast.identity}
        for (name, weight), value in zip(weights.items(), self.contrasts, strict=False):
            of_generator[name] = weight * value
        if self.hole_share is not None:
            of_generator["hole_share"] = self.config.hole_share * self.hole_share
        of_discriminator = discriminator_terms(self.config, self.discriminator_outputs[0], self.penalty, self.cutmix)
        return with_total("generator_st", of_generator) | with_total("discriminator_t", of_discriminator)


@dataclass
class Translated:
    """Images that the generator makes from a batch: (N, C, H, W) in [0, 1], float32."""

    fake_t: Tensor
    same_t: Tensor

    def rows(self, synthetic: Tensor, real: Tensor) -> dict[str, list[tuple[Tensor, ...]]]:
        """Return the rows of a sample grid."""
        return {
            "S to T": list(zip(synthetic, self.fake_t, strict=True)),
            "T to T": list(zip(real, self.same_t, strict=True)),
        }


class _ContrastiveStep(TrainingStep):
    """What both steps share. `contrast` has the settings of the contrastive loss."""

    def __init__(self, *arguments: Any, contrast: ContrastConfig, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.contrast = contrast
        self._noise_channels: int = self.networks.generator_st.config.noise_channels  # type: ignore[assignment, union-attr]  # registry.py

    def plan(self, number: int, progress: float) -> Plan:
        return replace(super().plan(number, progress), identity=self.contrast.identity > 0)

    @torch.no_grad()
    def evaluate(
        self, synthetic: Tensor, real: Tensor, progress: float = 0.0, first_image: int = 0
    ) -> tuple[ContrastiveLosses, Translated]:
        self.networks.eval()
        generator, discriminator = self.networks.translators[0], self.networks.discriminator_t
        keys = self._fixed_keys(synthetic, first_image)
        with self._normalised(self.networks.translators), uncompiled():
            with self._autocast(synthetic):
                translation, held_fake, of_synthetic = self._translate_and_encode(
                    generator, synthetic, keys, TRANSLATION
                )
                _, same, of_real = self._translate_and_encode(generator, real, keys, IDENTITY)
                fake = translation.image
                judged = [self._judge(discriminator, images, None, D_T) for images in (real, fake)]
            contrasts = [self._contrast(generator, of_synthetic, held_fake, keys.of(ST, TRANSLATION))]
            if self.contrast.identity:
                contrasts.append(self._contrast(generator, of_real, same, keys.of(ST, IDENTITY)))
        _, outputs = adversarial_loss(self.config, [judged[1]])
        _, of_discriminator = discriminator_loss(self.config, [(judged[0], judged[1])])
        means = torch.stack([losses.mean() for losses in contrasts])
        losses, of_holes = losses_at(self.config, progress), self._hole_share(translation, synthetic, real)
        found = ContrastiveLosses(
            self.contrast, outputs, means, of_discriminator, losses, hole_share=of_holes and of_holes[1]
        )
        return found, Translated(fake, same)

    def _discriminator_loss(
        self,
        real: Tensor,
        fake: Tensor,
        logits: tuple[Sequence[Tensor], Sequence[Tensor]],
        keys: SampleKeys,
        plan: Plan,
        share: float = 1.0,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the loss of D_T without penalty, the mean loss of each of its outputs, and the parts of mixtures."""
        loss, outputs = discriminator_loss(self.config, [logits], share)
        if not plan.losses.cutmix:
            return loss, outputs, None
        discriminator = self.networks.discriminator_t
        mixed, parts_of_it = self._judge_mixtures(discriminator, (real, fake), logits, plan.losses, keys, D_T)
        return loss + share * mixed, outputs, parts_of_it

    def _translate_and_encode(
        self, generator: nn.Module, images: Tensor, keys: SampleKeys, *passes: int
    ) -> tuple[Translation, Tensor, Sequence[Tensor]]:
        """Return the translation, the one for the contrast, and the images' features.

        The second one has the holes of `images`, and not those of a hole head.
        """
        with self.around(places.IN_GENERATORS):
            options = {"hole_plane": True} if self._has_holes(ST) else {}
            translated, features = generator(images, keys.of(ST, *passes), "also", **options)
        if not options:
            return Translation(translated, translated), translated, features
        return self._as_translation(translated), as_measured(translated, images), features

    def _noise_of_queries(self, images: Tensor, keys: Tensor) -> Tensor | None:
        """Return the noise beside a translation whose features are taken. It is not that of the original.

        With the same noise, the features of one position would be alike whatever the images show.
        """
        if not self._noise_channels:
            return None
        return normal(keys, self._noise_channels, images.shape[2], images.shape[3], NOISE_OF_QUERIES)

    def _contrast(self, generator: nn.Module, originals: Sequence[Tensor], translation: Tensor, keys: Tensor) -> Tensor:
        """Return the contrastive loss of each image (N,).

        `originals` are the features of the images that were translated. `keys` (N,) choose the positions, and the
        dropout of both.
        """
        with self._autocast(translation):
            with self.around(places.IN_GENERATORS):
                features = generator(translation, keys, "only", self._noise_of_queries(translation, keys))
            with self.around(places.COMPARE):
                where = positions(keys, features, self.contrast.patches)
            with self.around(places.IN_PROJECTOR):
                queries = self.networks.projector(at_positions(features, where))
                with torch.no_grad():
                    targets = self.networks.projector(at_positions(originals, where))
        with self.around(places.COMPARE):
            return contrastive_losses(queries, targets, self.contrast.temperature)


class PlainContrastiveStep(_ContrastiveStep):
    """The step as the method is written down."""

    def gradients(self, synthetic: Tensor, real: Tensor, keys: SampleKeys, plan: Plan) -> ContrastiveLosses:
        with self.around(places.ALL_GRADIENTS):
            return self._gradients(synthetic, real, keys, plan)

    def _gradients(self, synthetic: Tensor, real: Tensor, keys: SampleKeys, plan: Plan) -> ContrastiveLosses:
        generator, discriminator = self.networks.generator_st, self.networks.discriminator_t

        def translate(images: Tensor, of_pass: int) -> tuple[Translation, Tensor]:
            """Return the translation, and its mean contrastive loss."""
            with self._autocast(images):
                translated = self._generate(generator, images, keys, ST, of_pass)
                with torch.no_grad():
                    originals = generator(images, keys.of(ST, of_pass), "only")
            translation, held = Translation(translated, translated), translated
            if self._has_holes(ST):
                translation, held = self._as_translation(translated), as_measured(translated, images)
            return translation, self._contrast(generator, originals, held, keys.of(ST, of_pass)).mean()

        translation, contrast = translate(synthetic, TRANSLATION)
        fake = translation.image
        loss, contrasts, shares = self.contrast.weight * contrast, [contrast], None
        if (of_holes := self._hole_share(translation, synthetic, real)) is not None:
            loss, shares = loss + of_holes[0], of_holes[1]
        if plan.identity:
            _, contrast = translate(real, IDENTITY)
            loss = loss + self.contrast.identity * contrast
            contrasts.append(contrast)
        with self._autocast(real), frozen(discriminator):
            logits = self._judge(discriminator, fake, keys, D_T, FAKE)
        adversarial, outputs = adversarial_loss(self.config, [logits])
        (adversarial + loss).backward()
        self._complete(generator, self.networks.projector)

        fake, penalty = self._judged_later(fake, keys, D_T), None
        with self._autocast(real):
            of_real = self._judge(discriminator, real, keys, D_T, REAL)
            of_fake = self._judge(discriminator, fake, keys, D_T, FAKE)
        loss, judged, mixed = self._discriminator_loss(real, fake, (of_real, of_fake), keys, plan)
        if plan.penalty:
            of_penalty, penalty = self._penalty(discriminator, real, fake, keys, D_T)
            loss = loss + of_penalty
        loss.backward()
        self._complete(discriminator)
        contrasts_of_passes = torch.stack(contrasts).detach()
        return ContrastiveLosses(
            self.contrast, outputs, contrasts_of_passes, judged, plan.losses, penalty, mixed, shares
        )


class FastContrastiveStep(_ContrastiveStep):
    """The step in two phases. `micro_batch` is the number of samples per domain at a time; 0 takes all."""

    def __init__(self, *arguments: Any, micro_batch: int = 0, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.micro_batch = micro_batch

    def gradients(self, synthetic: Tensor, real: Tensor, keys: SampleKeys, plan: Plan) -> ContrastiveLosses:
        def losses_of(part: Part) -> ContrastiveLosses:
            return self._part(synthetic[part.samples], real[part.samples], keys.part(part.samples), plan, part)

        return mean_losses([(part.share, losses_of(part)) for part in parts(len(synthetic), self.micro_batch)])

    def _part(self, synthetic: Tensor, real: Tensor, keys: SampleKeys, plan: Plan, part: Part) -> ContrastiveLosses:
        """Add the gradients of one part of the batch, and return its losses."""
        generator, discriminator = self.networks.generator_st, self.networks.discriminator_t
        n = len(synthetic)
        with self.around(places.CONTRAST):
            passes = (TRANSLATION, IDENTITY) if plan.identity else (TRANSLATION,)
            of_samples = keys.of(ST, *passes)
            with self._autocast(synthetic):
                images = torch.cat((synthetic, real)) if plan.identity else synthetic
                translations, held, originals = self._translate_and_encode(generator, images, keys, *passes)
                of_synthetic = translations.first(n)
                fake = of_synthetic.image
                with frozen(discriminator):
                    logits = self._judge(discriminator, fake, keys, D_T, FAKE)
            losses = self._contrast(generator, originals, held, of_samples)
            contrasts = losses.view(len(passes), n).mean(1)
            weights = constants(
                (self.contrast.weight, self.contrast.identity)[: len(passes)], contrasts.device, contrasts.dtype
            )
            adversarial, outputs = adversarial_loss(self.config, [logits], part.share)
            loss, shares = adversarial + part.share * (contrasts @ weights), None
            if (of_holes := self._hole_share(of_synthetic, synthetic, real)) is not None:
                loss, shares = loss + part.share * of_holes[0], of_holes[1]
            loss.backward()
        if part.last:
            self._complete(generator, self.networks.projector)
        fake, penalty = self._judged_later(fake, keys, D_T), None
        with self.around(places.DISCRIMINATION):
            with self._autocast(real):
                judged = self._judge(discriminator, torch.cat((real, fake)), keys, D_T, REAL, FAKE)
            of_real, of_fake = zip(*(z.chunk(2) for z in judged), strict=True)
            loss, of_discriminator, mixed = self._discriminator_loss(
                real, fake, (of_real, of_fake), keys, plan, part.share
            )
            loss.backward()
        if plan.penalty:
            with self.around(places.PENALTY):
                loss, penalty = self._penalty(discriminator, real, fake, keys, D_T)
                (part.share * loss).backward()
        if part.last:
            self._complete(discriminator)
        return ContrastiveLosses(
            self.contrast, outputs, contrasts.detach(), of_discriminator, plan.losses, penalty, mixed, shares
        )
