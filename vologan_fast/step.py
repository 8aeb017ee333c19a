"""One optimisation step over the four networks.

All networks learn from the same forward passes and change at the end of the step together. With S and T the batches,

    fake_t = G_ST(S)    cycled_s = G_TS(fake_t)    same_s = G_TS(S)
    fake_s = G_TS(T)    cycled_t = G_ST(fake_s)    same_t = G_ST(T)

Routing "vologan": each generator learns from the losses in its own output domain: G_ST from D_T(fake_t), cycled_t and
same_t. The inner generator of a cycle gets no gradient from it, so the cycle starts from a detached translation.
Routing "cyclegan": the sum of all losses, gradients through everything.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from vologan_kernels import spectral_norm_step

from vologan_fast.config import LossConfig
from vologan_fast.losses import (
    DiscriminatorLosses,
    GeneratorLosses,
    StepLosses,
    discriminator_losses,
    generator_losses,
)
from vologan_fast.networks import Networks, memory_format


@dataclass
class Translations:
    """The six images that the generators make of a batch; (N, 4, H, W) in [0, 1], float32."""

    fake_t: Tensor
    fake_s: Tensor
    cycled_s: Tensor
    cycled_t: Tensor
    same_s: Tensor
    same_t: Tensor


class TrainingStep:
    """Calling it with batches of S and T, of one size, updates the networks and returns the losses.

    The host waits for nothing that a GPU does.
    """

    def __init__(
        self,
        networks: Networks,
        generator_optimizer: Optimizer,
        discriminator_optimizer: Optimizer,
        config: LossConfig,
        precision: torch.dtype = torch.float32,
    ) -> None:
        self.networks = networks
        self.generator_optimizer = generator_optimizer
        self.discriminator_optimizer = discriminator_optimizer
        self.config = config
        self.precision = precision

    def __call__(self, synthetic: Tensor, real: Tensor) -> StepLosses:
        self.networks.train()
        with self._normalised(self.networks.generators):
            return self._update(synthetic, real)

    def _update(self, synthetic: Tensor, real: Tensor) -> StepLosses:
        self.generator_optimizer.zero_grad(set_to_none=True)
        self.discriminator_optimizer.zero_grad(set_to_none=True)

        translations = self.translate(
            self.networks.generators, synthetic, real, detach_cycles=self.config.routing == "vologan"
        )
        with _frozen(self.networks.discriminators):
            generators = self._generator_losses(synthetic, real, translations)
            generators.total.backward()
        discriminators = self._discriminator_losses(synthetic, real, translations)
        discriminators.total.backward()

        self.generator_optimizer.step()
        self.discriminator_optimizer.step()
        return StepLosses.of(self.config, generators, discriminators)

    @torch.no_grad()
    def evaluate(self, synthetic: Tensor, real: Tensor) -> tuple[StepLosses, Translations]:
        """The losses and translations of a held-out batch; nothing is updated and no randomness is drawn."""
        self.networks.eval()
        with self._normalised(self.networks.translators):
            translations = self.translate(self.networks.translators, synthetic, real)
            generators = self._generator_losses(synthetic, real, translations)
            discriminators = self._discriminator_losses(synthetic, real, translations)
        return StepLosses.of(self.config, generators, discriminators), translations

    def translate(
        self, generators: nn.ModuleList, synthetic: Tensor, real: Tensor, detach_cycles: bool = False
    ) -> Translations:
        """Run S-to-T and T-to-S over the batch; `detach_cycles` keeps a cycle's gradient from its inner generator."""
        st, ts = generators
        layout = memory_format(synthetic.device)
        synthetic, real = synthetic.contiguous(memory_format=layout), real.contiguous(memory_format=layout)
        with self._autocast(synthetic):
            fake_t, fake_s = st(synthetic), ts(real)
            inner_t, inner_s = (fake_t.detach(), fake_s.detach()) if detach_cycles else (fake_t, fake_s)
            return Translations(
                fake_t=fake_t,
                fake_s=fake_s,
                cycled_s=ts(inner_t),
                cycled_t=st(inner_s),
                same_s=ts(synthetic),
                same_t=st(real),
            )

    def _generator_losses(self, synthetic: Tensor, real: Tensor, images: Translations) -> GeneratorLosses:
        with self._autocast(synthetic):
            logits_t = self.networks.discriminator_t(images.fake_t)
            logits_s = self.networks.discriminator_s(images.fake_s)
        st = real, images.cycled_t, images.same_t
        ts = synthetic, images.cycled_s, images.same_s
        return generator_losses(self.config, logits_t, logits_s, st, ts)

    def _discriminator_losses(self, synthetic: Tensor, real: Tensor, images: Translations) -> DiscriminatorLosses:
        discriminator_s, discriminator_t = self.networks.discriminator_s, self.networks.discriminator_t
        with self._autocast(synthetic):
            logits_s = discriminator_s(synthetic), discriminator_s(images.fake_s.detach())
            logits_t = discriminator_t(real), discriminator_t(images.fake_t.detach())
        return discriminator_losses(self.config, *logits_s, *logits_t)

    def _normalised(self, generators: nn.ModuleList) -> AbstractContextManager[None]:
        """Inside, all passes see weights that are normalised once, in the type that they compute in."""
        dtype = None if self.precision == torch.float32 else self.precision
        return spectral_norm_step(generators, self.networks.discriminators, dtype=dtype)

    def _autocast(self, batch: Tensor) -> torch.autocast:
        return torch.autocast(batch.device.type, dtype=self.precision, enabled=self.precision != torch.float32)


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """Gradients pass through the module, its parameters collect none."""
    module.requires_grad_(False)
    try:
        yield
    finally:
        module.requires_grad_(True)
