"""The training step of a CycleGAN in phases.

It gives the gradients of `PlainStep` with less memory and with fewer, larger batches.

Samples do not affect each other, because the norms and the losses work on single images. So several passes through one
network can be one batch. Some losses share no graph with another loss. The backward of such a loss can run, and free
its activations, before the next loss is computed. N is the batch size. These are the phases for each routing:

"vologan"   for each generator: translate; run the discriminator; backward.
            for each generator: cycle and identity as one batch of 2 N; backward.
"cyclegan"  for each direction, S → T → S and T → S → T: translate; run the discriminator; run the other generator on
            translation and original, as one batch of 2 N, for cycle and identity; backward.
both        for each discriminator: real and fake images as one batch of 2 N; with CutMix, their N mixtures; backward.
            for each discriminator, in steps with a gradient penalty: its N images; backward, twice differentiated.

Gradients add up in `.grad`. The weights do not change before the end of the step. At any time, the step keeps the
activations of at most 2 N images in one generator. With "cyclegan", it keeps those for at most 3 N images, in two
generators. The plain step keeps the activations of 6 N images.

With `micro_batch`, the batch is cut into parts, and all phases run for the first part, then for the next. The losses of
a part are multiplied by its share of the batch.

Each discriminator runs on the fakes twice: once for the generator's loss, and once for its own loss. One forward would
be enough for both, and would save 2 % of the arithmetic. But its activations would be kept through the generator's
backward, and real and fake images would be separate batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vologan_fast.training import places
from vologan_fast.training.cycle_step import CYCLE, IDENTITY, CycleStep
from vologan_fast.training.losses import (
    Domain,
    StepLosses,
    adversarial_loss,
    discriminator_loss,
    mean_losses,
    reconstruction_loss,
)
from vologan_fast.training.step import (
    D_S,
    D_T,
    FAKE,
    REAL,
    ST,
    TS,
    Part,
    Plan,
    SampleKeys,
    frozen,
    parts,
)


@dataclass
class _Direction:
    """One direction of translation, from a source to a target domain."""

    generator: nn.Module
    discriminator: nn.Module
    """Discriminator of the target domain. It judges the generator's translations."""
    source: Tensor
    target: Tensor
    to: Domain
    """The target domain."""
    generator_key: int
    discriminator_key: int
    fake: Tensor | None = None
    """The generator's translation of `source`, without its graph."""
    hole_share: Tensor | None = None
    """Loss of the share of holes, without weight and graph."""


@dataclass(frozen=True)
class _Part:
    """A part of a batch."""

    keys: SampleKeys
    share: float
    """Fraction of the batch; the weight of this part's losses."""
    plan: Plan


class FastStep(CycleStep):
    """Training step in phases. `micro_batch` is the number of samples per domain at a time; 0 takes all.

    The other arguments are those of `TrainingStep`.
    """

    def __init__(self, *arguments: Any, micro_batch: int = 0, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.micro_batch = micro_batch

    def gradients(self, synthetic: Tensor, real: Tensor, keys: SampleKeys, plan: Plan) -> StepLosses:
        def losses_of(part: Part) -> StepLosses:
            of_part = _Part(keys.part(part.samples), part.share, plan)
            return self._part(synthetic[part.samples], real[part.samples], of_part, part.last)

        return mean_losses([(part.share, losses_of(part)) for part in parts(len(synthetic), self.micro_batch)])

    def _part(self, synthetic: Tensor, real: Tensor, part: _Part, last: bool) -> StepLosses:
        """Add the gradients of one part, and return its losses. After the `last` part the gradients are complete."""
        networks = self.networks

        def complete(*networks: nn.Module) -> None:
            if last:
                self._complete(*networks)

        st = _Direction(networks.generator_st, networks.discriminator_t, synthetic, real, "t", ST, D_T)
        ts = _Direction(networks.generator_ts, networks.discriminator_s, real, synthetic, "s", TS, D_S)
        both = ((st, ts), (ts, st))
        outputs, metrics, judged, penalties, mixtures = [], [], [], [], []
        if self.config.routing == "vologan":
            for there, _ in both:
                with self.around(places.ADVERSARIAL):
                    outputs.append(self._adversarial(there, part))
            for there, back in both:
                with self.around(places.RECONSTRUCTION):
                    metrics.append(self._reconstruction(there, back, part))
                complete(there.generator)
        else:
            for there, back in both:
                with self.around(places.CYCLE):
                    of_logits, of_images = self._cycle(there, back, part)
                outputs.append(of_logits)
                metrics.insert(0, of_images)  # they belong to the other generator, which ends the cycle
            complete(*networks.generators)
        for there in (ts, st):
            with self.around(places.DISCRIMINATION):
                of_images, of_mixtures = self._discrimination(there, part)
            judged.append(of_images)
            if of_mixtures is not None:
                mixtures.append(of_mixtures)
            if part.plan.penalty:
                with self.around(places.PENALTY):
                    penalties.append(self._smoothing(there, part))
            complete(there.discriminator)
        return StepLosses(
            part.plan.losses,
            torch.cat(outputs),
            torch.cat(metrics),
            torch.cat(judged),
            torch.stack(penalties) if penalties else None,
            torch.stack(mixtures) if mixtures else None,
            st.hole_share,
        )

    def _adversarial(self, there: _Direction, part: _Part) -> Tensor:
        """Add the gradients of the generator's adversarial loss. Returns the discriminator outputs' mean losses."""
        loss, outputs = self._deceive(there, part)[1:]
        loss.backward()
        return outputs

    def _reconstruction(self, there: _Direction, back: _Direction, part: _Part) -> Tensor:
        """Add the gradients of the generator's cycle and identity losses. Returns their metrics.

        The generator learns to undo the other generator's translation, and to leave images of its output domain
        unchanged.
        """
        assert back.fake is not None
        with self._autocast(there.target):
            changed = self._reconstruct(part, there.generator, there.generator_key, back.fake, there.target)
        loss, metrics = reconstruction_loss(part.plan.losses, {there.to: (there.target, *changed)}, part.share)
        loss.backward()
        return metrics

    def _cycle(self, there: _Direction, back: _Direction, part: _Part) -> tuple[Tensor, Tensor]:
        """Add the gradients of one cycle's losses to both generators.

        Returns the mean losses of the discriminator's outputs, and the metrics.
        """
        fake, adversarial, outputs = self._deceive(there, part)
        with self._autocast(there.source):
            changed = self._reconstruct(part, back.generator, back.generator_key, fake, there.source)
        images: dict[Domain, Sequence[Tensor]] = {back.to: (there.source, *changed)}
        reconstruction, metrics = reconstruction_loss(part.plan.losses, images, part.share)
        (adversarial + reconstruction).backward()
        return outputs, metrics

    def _reconstruct(
        self, part: _Part, generator: nn.Module, key: int, translation: Tensor, original: Tensor
    ) -> Sequence[Tensor]:
        """Run cycle and identity as one batch, and return their images. Without identity, only the cycle."""
        if not part.plan.identity:
            return [self._remake(generator, translation, part.keys, key, CYCLE, like=original)]
        images, like = torch.cat((translation, original)), torch.cat((original, original))
        return self._remake(generator, images, part.keys, key, CYCLE, IDENTITY, like=like).chunk(2)

    def _deceive(self, there: _Direction, part: _Part) -> tuple[Tensor, Tensor, Tensor]:
        """Translate, and run the discriminator on the result.

        Returns the translation for the cycle, the generator's adversarial loss, and the mean loss of each discriminator
        output.
        """
        with self._autocast(there.source):
            translation = self._translate(there.generator, there.source, part.keys, there.generator_key)
            fake = translation.image
            with frozen(there.discriminator):
                logits = self._judge(there.discriminator, fake, part.keys, there.discriminator_key, FAKE)
        there.fake = fake.detach()
        loss, outputs = adversarial_loss(self.config, [logits], part.share)
        if (of_holes := self._hole_share(translation, there.source, there.target)) is not None:
            loss, there.hole_share = loss + part.share * of_holes[0], of_holes[1]
        return translation.inner, loss, outputs

    def _discrimination(self, there: _Direction, part: _Part) -> tuple[Tensor, Tensor | None]:
        """Add the gradients of the discriminator's loss.

        It learns to distinguish images of the target domain from translations. Returns the mean loss of each of its
        outputs, and the losses of the mixtures if there are any.
        """
        assert there.fake is not None
        there.fake = self._judged_later(there.fake, part.keys, there.discriminator_key)
        with self._autocast(there.target):
            images = torch.cat((there.target, there.fake))
            logits = self._judge(there.discriminator, images, part.keys, there.discriminator_key, REAL, FAKE)
        real, fake = zip(*(z.chunk(2) for z in logits), strict=True)
        loss, outputs = discriminator_loss(self.config, [(real, fake)], part.share)
        mixed = None
        if part.plan.losses.cutmix:
            of_mixtures, mixed = self._judge_mixtures(
                there.discriminator,
                (there.target, there.fake),
                (real, fake),
                part.plan.losses,
                part.keys,
                there.discriminator_key,
            )
            loss = loss + part.share * of_mixtures
        loss.backward()
        return outputs, mixed

    def _smoothing(self, there: _Direction, part: _Part) -> Tensor:
        """Add the gradients of the discriminator's gradient penalty, and return the penalty."""
        assert there.fake is not None
        loss, penalty = self._penalty(there.discriminator, there.target, there.fake, part.keys, there.discriminator_key)
        (part.share * loss).backward()
        return penalty
