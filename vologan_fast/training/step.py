"""One optimisation step over the four networks.

All networks learn from the same forward passes and change at the end of the step together. With S and T the batches,

    fake_t = G_ST(S)    cycled_s = G_TS(fake_t)    same_s = G_TS(S)
    fake_s = G_TS(T)    cycled_t = G_ST(fake_s)    same_t = G_ST(T)

Routing "vologan": each generator learns from the losses in its own output domain: G_ST from D_T(fake_t), cycled_t and
same_t. The inner generator of a cycle gets no gradient from it, so the cycle starts from a detached translation.
Routing "cyclegan": the sum of all losses, gradients through everything.

`PlainStep` does it as it is written here. `FastStep` (`fast_step.py`) gives the same gradients for less.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.profiler import record_function
from vologan_kernels import spectral_norm_step

from vologan_fast.config import LossConfig
from vologan_fast.networks import Networks, memory_format
from vologan_fast.training.compilation import compile_networks, compiled_or_not, uncompiled
from vologan_fast.training.losses import StepLosses, adversarial_loss, discriminator_loss, reconstruction_loss
from vologan_fast.training.places import (
    ALL_GRADIENTS,
    IN_DISCRIMINATORS,
    IN_GENERATORS,
    OPTIMIZE_DISCRIMINATORS,
    OPTIMIZE_GENERATORS,
)


@dataclass
class Translations:
    """What the generators make of a batch; (N, 4, H, W) in [0, 1], float32. Not every step has an identity."""

    fake_t: Tensor
    fake_s: Tensor
    cycled_s: Tensor
    cycled_t: Tensor
    same_s: Tensor | None = None
    same_t: Tensor | None = None


ST, TS, D_S, D_T = range(4)
"""Networks, as rows of the keys."""
TRANSLATION, CYCLE, IDENTITY = range(3)
"""Passes of a generator, as columns of the keys. What is batched together lies side by side."""
REAL, FAKE = range(2)
"""Passes of a discriminator."""


class Reducer(Protocol):
    """Makes gradients of this process's samples those of the whole batch (`distributed.py`)."""

    def start(self, parameters: Iterable[nn.Parameter]) -> None:
        """Begin with the gradients of `parameters`, which are complete."""

    def finish(self) -> None:
        """Return when what was started may be used."""


class SampleKeys:
    """What the dropout of every sample in every pass of one step follows from (`networks/dropout.py`)."""

    def __init__(self, table: Tensor) -> None:
        self.table = table  # (networks, passes, N) int64

    def of(self, network: int, first: int, last: int | None = None) -> Tensor:
        """Of a batch of the passes from `first` to `last` one after the other, (passes · N,)."""
        return self.table[network, first : (first if last is None else last) + 1].flatten()

    def part(self, samples: slice) -> SampleKeys:
        return SampleKeys(self.table[..., samples])


class TrainingStep:
    """Calling it with batches of S and T, of one size, updates the networks and returns the losses.

    `number` counts the steps: dropout follows from it and from `seed`. `first_sample` is where this process's samples
    stand in the whole batch, and `reducer` makes the gradients those of the whole. `compile`: "none", or a mode of
    `compile_networks`. The host waits for nothing that a GPU does.
    """

    def __init__(
        self,
        networks: Networks,
        generator_optimizer: Optimizer,
        discriminator_optimizer: Optimizer,
        config: LossConfig,
        precision: torch.dtype = torch.float32,
        *,
        seed: int = 0,
        first_sample: int = 0,
        reducer: Reducer | None = None,
        compile: str = "none",
    ) -> None:
        self.networks = networks
        self.generator_optimizer = generator_optimizer
        self.discriminator_optimizer = discriminator_optimizer
        self.config = config
        self.precision = precision
        self.seed = seed
        self.first_sample = first_sample
        self.reducer = reducer
        self.around: Callable[[str], AbstractContextManager[Any]] = record_function
        """Entered around each place of the step, given its name (`places.py`). A profiler may set another one."""
        self._number: Tensor | None = None
        self._compiled = list(networks.learning) if compile != "none" else []
        compile_networks(self._compiled, compile)

    def __call__(self, synthetic: Tensor, real: Tensor, number: int) -> StepLosses:
        self.prepare(number, synthetic)
        return self.run(synthetic, real, self.has_identity(number))

    def prepare(self, number: int, batch: Tensor) -> None:
        """Say which step `run` is to be, on the device of `batch`."""
        if self._number is None:
            self._number = torch.zeros((), dtype=torch.int64, device=batch.device)
        self._number.fill_(number)

    def has_identity(self, number: int) -> bool:
        return number % self.config.identity_every == 0

    def run(self, synthetic: Tensor, real: Tensor, identity: bool) -> StepLosses:
        """The step that was prepared: of nothing but tensors and `identity`, so that a CUDA graph can hold it."""
        self.networks.train()
        self._forget_gradients()
        layout = memory_format(synthetic.device)
        synthetic, real = synthetic.contiguous(memory_format=layout), real.contiguous(memory_format=layout)
        keys = self._keys(synthetic)
        with self._normalised(self.networks.generators):
            if self.reducer is not None:  # no second try: the other processes would not know of it
                losses = self.gradients(synthetic, real, keys, identity)
            else:
                losses = compiled_or_not(
                    lambda: self.gradients(synthetic, real, keys, identity), self._compiled, self._forget_gradients
                )
        if self.reducer is not None:
            self.reducer.finish()
        with self.around(OPTIMIZE_GENERATORS):
            self.generator_optimizer.step()
        with self.around(OPTIMIZE_DISCRIMINATORS):
            self.discriminator_optimizer.step()
        return losses

    def gradients(self, synthetic: Tensor, real: Tensor, keys: SampleKeys, identity: bool) -> StepLosses:
        """Add every parameter's gradient to its `.grad`; `identity`: with that pass."""
        raise NotImplementedError

    def _forget_gradients(self) -> None:
        self.generator_optimizer.zero_grad(set_to_none=True)
        self.discriminator_optimizer.zero_grad(set_to_none=True)

    def _complete(self, *networks: nn.Module) -> None:
        """The gradients of `networks` are: let them be reduced beside what follows."""
        if self.reducer is not None:
            for network in networks:
                self.reducer.start(network.parameters())

    @torch.no_grad()
    def evaluate(self, synthetic: Tensor, real: Tensor) -> tuple[StepLosses, Translations]:
        """The losses and translations of a held-out batch; nothing is updated and no randomness is drawn."""
        self.networks.eval()
        with self._normalised(self.networks.translators), uncompiled():
            images = self.translate(self.networks.translators, synthetic, real)
            _, outputs, metrics = self._judge_generators(synthetic, real, images)
            _, of_discriminators = self._judge_images(synthetic, real, images)
        return StepLosses(self.config, outputs, metrics, of_discriminators), images

    def translate(
        self,
        generators: nn.ModuleList,
        synthetic: Tensor,
        real: Tensor,
        keys: SampleKeys | None = None,
        *,
        detach_cycles: bool = False,
        identity: bool = True,
    ) -> Translations:
        """Run S-to-T and T-to-S over the batch; `detach_cycles` keeps a cycle's gradient from its inner generator."""

        def st(images: Tensor, of_pass: int) -> Tensor:
            return self._generate(generators[0], images, keys, ST, of_pass)

        def ts(images: Tensor, of_pass: int) -> Tensor:
            return self._generate(generators[1], images, keys, TS, of_pass)

        with self._autocast(synthetic):
            fake_t, fake_s = st(synthetic, TRANSLATION), ts(real, TRANSLATION)
            inner_t, inner_s = (fake_t.detach(), fake_s.detach()) if detach_cycles else (fake_t, fake_s)
            return Translations(
                fake_t=fake_t,
                fake_s=fake_s,
                cycled_s=ts(inner_t, CYCLE),
                cycled_t=st(inner_s, CYCLE),
                same_s=ts(synthetic, IDENTITY) if identity else None,
                same_t=st(real, IDENTITY) if identity else None,
            )

    def _generate(
        self, generator: nn.Module, images: Tensor, keys: SampleKeys | None, network: int, *passes: int
    ) -> Tensor:
        """Run a generator: (N, 4, H, W) → the same. The rest says which keys the dropout takes, see `SampleKeys.of`."""
        with self.around(IN_GENERATORS):
            translated: Tensor = generator(images, None if keys is None else keys.of(network, *passes))
        return translated

    def _judge(
        self, discriminator: nn.Module, images: Tensor, keys: SampleKeys | None, network: int, *passes: int
    ) -> Sequence[Tensor]:
        """Run a discriminator: (N, 4, H, W) → its outputs. The rest is as in `_generate`."""
        with self.around(IN_DISCRIMINATORS):
            logits: Sequence[Tensor] = discriminator(images, None if keys is None else keys.of(network, *passes))
        return logits

    def _judge_generators(
        self, synthetic: Tensor, real: Tensor, images: Translations, keys: SampleKeys | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Both generators' loss, and what of it is logged."""
        with self._autocast(synthetic):
            logits_t = self._judge(self.networks.discriminator_t, images.fake_t, keys, D_T, FAKE)
            logits_s = self._judge(self.networks.discriminator_s, images.fake_s, keys, D_S, FAKE)
        adversarial, outputs = adversarial_loss(self.config, [logits_t, logits_s])
        of_st, of_ts = [real, images.cycled_t], [synthetic, images.cycled_s]
        if images.same_t is not None and images.same_s is not None:
            of_st, of_ts = [*of_st, images.same_t], [*of_ts, images.same_s]
        reconstruction, metrics = reconstruction_loss(self.config, [of_st, of_ts])
        return adversarial + reconstruction, outputs, metrics

    def _judge_images(
        self, synthetic: Tensor, real: Tensor, images: Translations, keys: SampleKeys | None = None
    ) -> tuple[Tensor, Tensor]:
        """Both discriminators' loss, and what of it is logged."""
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
        return discriminator_loss(self.config, [of_s, of_t])

    def _normalised(self, generators: nn.ModuleList) -> AbstractContextManager[None]:
        """Inside, all passes see weights that are normalised once, in the type that they compute in."""
        dtype = None if self.precision == torch.float32 else self.precision
        return spectral_norm_step(generators, self.networks.discriminators, dtype=dtype)

    def _autocast(self, batch: Tensor) -> torch.autocast:
        return torch.autocast(batch.device.type, dtype=self.precision, enabled=self.precision != torch.float32)

    def _keys(self, batch: Tensor) -> SampleKeys:
        """Of the prepared step: no two samples, passes, networks or steps of a run have the same."""
        assert self._number is not None
        passes = torch.arange(4 * 3, device=batch.device).view(4, 3, 1)
        samples = torch.arange(len(batch), device=batch.device) + (self.first_sample + self.seed % 2**15 * 2**48)
        return SampleKeys((self._number * (4 * 3) + passes) * 2**20 + samples)


class PlainStep(TrainingStep):
    """Six generator passes, one sum and one backward for the generators, one for the discriminators."""

    def gradients(self, synthetic: Tensor, real: Tensor, keys: SampleKeys, identity: bool) -> StepLosses:
        with self.around(ALL_GRADIENTS):
            return self._gradients(synthetic, real, keys, identity)

    def _gradients(self, synthetic: Tensor, real: Tensor, keys: SampleKeys, identity: bool) -> StepLosses:
        images = self.translate(
            self.networks.generators,
            synthetic,
            real,
            keys,
            detach_cycles=self.config.routing == "vologan",
            identity=identity,
        )
        with frozen(self.networks.discriminators):
            loss, outputs, metrics = self._judge_generators(synthetic, real, images, keys)
            loss.backward()
        self._complete(*self.networks.generators)
        loss, of_discriminators = self._judge_images(synthetic, real, images, keys)
        loss.backward()
        self._complete(*self.networks.discriminators)
        return StepLosses(self.config, outputs, metrics, of_discriminators)


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Gradients pass through the module, its parameters collect none."""
    module.requires_grad_(False)
    try:
        yield
    finally:
        module.requires_grad_(True)
