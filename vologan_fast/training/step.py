"""One optimisation step, without the method: random keys, passes through a network, optimisers.

`cycle_step.py` and `contrastive_step.py` have the methods. Each has a plain step, which is the method as it is written
down, and a fast step with the same gradients.

Each discriminator learns from the real images of its domain and from the translations into it. With `loss.pool`, some
of these come from former steps (`image_pool.py`). `loss.penalty` adds a term (`penalty.py`), and `loss.diffaugment`
changes all images that a discriminator judges in training (`differentiable_augmentation.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from vologan_kernels import spectral_norm_step

from vologan_fast.config import LossConfig
from vologan_fast.networks import FLOAT32, Networks, Numerics
from vologan_fast.networks.depth_gradient import with_depth_gradient
from vologan_fast.networks.stochastic import as_measured, hole_share, measured
from vologan_fast.training.compilation import compile_networks, compiled_or_not, uncompiled
from vologan_fast.training.cutmix import mixture
from vologan_fast.training.differentiable_augmentation import augmented
from vologan_fast.training.finite import all_finite
from vologan_fast.training.image_pool import ImagePool
from vologan_fast.training.losses import Losses, losses_at, mixture_loss
from vologan_fast.training.penalty import gradient_penalty
from vologan_fast.training.places import (
    AUGMENT,
    EXCHANGE,
    IN_DISCRIMINATORS,
    IN_GENERATORS,
    MIX,
    OPTIMIZE_DISCRIMINATORS,
    OPTIMIZE_GENERATORS,
    recorded,
)


class Images(Protocol):
    """Images that a step makes from a batch."""

    def rows(self, synthetic: Tensor, real: Tensor) -> dict[str, list[tuple[Tensor, ...]]]:
        """Return the rows of a sample grid, by their name. A row begins with an image of the batch."""


ST, TS, D_S, D_T = range(4)
"""Networks, as first index of the dropout keys."""
TRANSLATION = 0
"""The pass of a generator that translates, as second index of the dropout keys. Methods have more passes."""
REAL, FAKE, PENALTY = range(3)
"""Passes of a discriminator, as second index of the dropout keys."""
MIXED = PENALTY
"""The pass for mixtures. It may drop the same elements as the pass for the penalty."""


@dataclass(frozen=True)
class Plan:
    """The parts of a step that are fixed before it runs. They follow from its number and the progress of the run."""

    losses: LossConfig
    """The settings of the losses, from `losses_at`."""
    identity: bool
    """Whether the step has identity passes."""
    penalty: bool
    """Whether the step has a gradient penalty."""


StepState = dict[str, dict[str, Tensor]]
"""State of a step on one process: for each domain, "s" and "t", its image pool."""


class Reducer(Protocol):
    """Averages the gradients of this process's samples over all processes (`distributed.py`)."""

    def start(self, parameters: Iterable[nn.Parameter]) -> None:
        """Start to average the gradients of `parameters`, which must be complete."""

    def finish(self) -> None:
        """Return once the averaged gradients may be used."""


class Translation(NamedTuple):
    """A generator's translation (N, C, H, W)."""

    image: Tensor
    """As the discriminator sees it."""
    inner: Tensor
    """For the cycle: the same values. The holes of a hole head get no gradient from it, which would punish them all."""
    with_holes: Tensor | None = None
    """Of a hole head: the image without holes, and their plane as one more channel."""

    def first(self, count: int) -> Translation:
        """Return the first `count` translations of the batch."""
        holes = None if self.with_holes is None else self.with_holes[:count]
        return Translation(self.image[:count], self.inner[:count], holes)


class SampleKeys:
    """Keys that determine the random choices for each sample in each pass of one step.

    These are dropout (`networks/dropout.py`), noise (`networks/stochastic.py`) and those of `sample_random.py`.
    """

    def __init__(self, table: Tensor) -> None:
        self.table = table  # (networks, passes, N) int64

    def of(self, network: int, first: int, last: int | None = None) -> Tensor:
        """Return the keys of a batch that holds the passes from `first` to `last` in turn, (passes · N,)."""
        return self.table[network, first : (first if last is None else last) + 1].flatten()

    def part(self, samples: slice) -> SampleKeys:
        return SampleKeys(self.table[..., samples])


@dataclass(frozen=True)
class Part:
    """A part of the samples of a step."""

    samples: slice
    share: float
    """Fraction of the batch; the weight of this part's losses."""
    last: bool
    """Whether the gradients are complete after this part."""


def parts(n: int, size: int) -> Iterator[Part]:
    """Yield the parts of a batch of n samples. Each has `size` samples, and the last may have fewer. 0: one part."""
    size = size or n
    for first in range(0, n, size):
        end = min(first + size, n)
        yield Part(slice(first, end), (end - first) / n, end == n)


class TrainingStep:
    """A training step. A call with batches of S and T, of equal size, updates the networks and returns the losses.

    The call's `number` counts the steps. All random choices depend on it and on `seed`. The call's `progress` is the
    fraction of the schedule's epochs that were over when the step's epoch began. The networks compute in `numerics`,
    and their weights have its layout. `first_sample` is the index of this process's first sample in the whole batch.
    `reducer` averages the gradients over the processes. With `skips_bad`, gradients that are not finite are not used,
    and the host waits for the GPU to know it; otherwise it never waits. `compile` is "none" or a mode of
    `compile_networks`.
    `colour_channels` are the numbers of colour channels in images of S and T; these come before the others.
    """

    def __init__(
        self,
        networks: Networks,
        generator_optimizer: Optimizer,
        discriminator_optimizer: Optimizer,
        config: LossConfig,
        numerics: Numerics = FLOAT32,
        *,
        seed: int = 0,
        first_sample: int = 0,
        reducer: Reducer | None = None,
        skips_bad: bool = False,
        compile: str = "none",
        colour_channels: tuple[int, int] = (3, 3),
    ) -> None:
        self.networks = networks
        self.generator_optimizer = generator_optimizer
        self.discriminator_optimizer = discriminator_optimizer
        self.config = config
        self.precision, self.layout = numerics
        self.seed = seed
        self.first_sample = first_sample
        self.reducer = reducer
        self.skips_bad = skips_bad
        self.skipped = False
        """Whether the gradients of the last step were not used, because they were not finite."""
        self.around: Callable[[str], AbstractContextManager[Any]] = recorded
        """Function from the name of a place (`places.py`) to the context around it. A profiler may replace it."""
        self._number: Tensor | None = None
        self._hole_head: bool = networks.generator_st.config.hole_head  # type: ignore[assignment, union-attr]  # registry.py
        self._colour_channels = dict(zip((D_S, D_T), colour_channels, strict=True))
        self._depth_gradient: float = networks.discriminator_t.config.depth_gradient  # type: ignore[assignment, union-attr]  # registry.py
        self._pools = {network: ImagePool(config.pool, self.layout) for network in (D_S, D_T)} if config.pool else {}
        self._compiled = list(networks.learning) if compile != "none" else []
        compile_networks(self._compiled, compile)

    def __call__(self, synthetic: Tensor, real: Tensor, number: int, progress: float = 0.0) -> Losses:
        self.prepare(number, synthetic)
        return self.run(synthetic, real, self.plan(number, progress))

    def prepare(self, number: int, batch: Tensor) -> None:
        """Set the number of the step that `run` will do. It is kept in a tensor on the device of `batch`."""
        if self._number is None:
            self._number = torch.zeros((), dtype=torch.int64, device=batch.device)
        self._number.fill_(number)

    def plan(self, number: int, progress: float) -> Plan:
        """Return the plan of a step. The arguments are those of the call."""
        config = self.config
        return Plan(
            losses=losses_at(config, progress),
            identity=self.networks.have_identity and number % config.identity_every == 0,
            penalty=config.penalty != "none" and number % config.penalty_every == 0,
        )

    def run(self, synthetic: Tensor, real: Tensor, plan: Plan) -> Losses:
        """Do the step that was prepared. It depends only on tensors and `plan`, so a CUDA graph can capture it."""
        if not self.networks.training:  # the call visits each module, which takes as long as some convolutions
            self.networks.train()
        self._start_again()
        synthetic, real = (batch.contiguous(memory_format=self.layout) for batch in (synthetic, real))
        keys = self._keys(synthetic)
        # autocast keeps the weights that it has cast until the outermost of its contexts ends, be it a disabled one
        cast_once = torch.autocast(synthetic.device.type, enabled=False)
        with cast_once, self._normalised(self.networks.generators):
            if self.reducer is not None:  # no second try after a failed compilation: the other processes make none
                losses = self.gradients(synthetic, real, keys, plan)
            else:
                losses = compiled_or_not(
                    lambda: self.gradients(synthetic, real, keys, plan), self._compiled, self._start_again
                )
        if self.reducer is not None:
            self.reducer.finish()
        self.skipped = self.skips_bad and not bool(all_finite(self._gradients_of_all()))
        if self.skipped:
            return losses
        if self._pools:
            with self.around(EXCHANGE):
                for pool in self._pools.values():
                    pool.store()
        with self.around(OPTIMIZE_GENERATORS):
            self.generator_optimizer.step()
        with self.around(OPTIMIZE_DISCRIMINATORS):
            self.discriminator_optimizer.step()
        return losses

    def gradients(self, synthetic: Tensor, real: Tensor, keys: SampleKeys, plan: Plan) -> Losses:
        """Add each parameter's gradient to its `.grad`, and return the losses."""
        raise NotImplementedError

    def state_dict(self) -> StepState:
        """Return the state that is neither in the networks nor in the optimisers: the image pools."""
        return {domain: self._pools[network].state_dict() for domain, network in self._pooled()}

    def load_state_dict(self, state: StepState) -> None:
        """Restore what `state_dict` returned. Raises KeyError or ValueError for a state that does not fit."""
        device = next(self.networks.parameters()).device
        for domain, network in self._pooled():
            self._pools[network].load_state_dict(state[domain], device)

    def _pooled(self) -> list[tuple[str, int]]:
        return [("s", D_S), ("t", D_T)] if self._pools else []

    def _start_again(self) -> None:
        """Forget what an unfinished step has left."""
        self.generator_optimizer.zero_grad(set_to_none=True)
        self.discriminator_optimizer.zero_grad(set_to_none=True)
        for pool in self._pools.values():
            pool.forget()

    def _gradients_of_all(self) -> list[Tensor]:
        parameters = (
            parameter
            for optimizer in (self.generator_optimizer, self.discriminator_optimizer)
            for group in optimizer.param_groups
            for parameter in group["params"]
        )
        return [parameter.grad for parameter in parameters if parameter.grad is not None]

    def _complete(self, *networks: nn.Module) -> None:
        """Start to reduce the gradients of `networks`, which are complete, while the next passes run."""
        if self.reducer is not None:
            for network in networks:
                self.reducer.start(network.parameters())

    def evaluate(
        self, synthetic: Tensor, real: Tensor, progress: float = 0.0, first_image: int = 0
    ) -> tuple[Losses, Images]:
        """Return the losses and translations of a held-out batch. Update nothing and draw no random numbers.

        There are no image pool, no penalty and no augmentation. `progress` is as in a call. `first_image` is the index
        of the batch's first images among all held-out images of their domain. An image's noise follows from its index.
        """
        raise NotImplementedError

    @torch.no_grad()
    def translate_held_out(self, synthetic: Tensor, first_image: int = 0) -> Tensor:
        """Return the translation of S to T, as `evaluate` makes it. Update nothing and draw no random numbers."""
        self.networks.eval()
        keys = self._fixed_keys(synthetic, first_image)
        with self._normalised(self.networks.translators), uncompiled(), self._autocast(synthetic):
            return self._translate(self.networks.translators[0], synthetic, keys, ST).image

    def _translate(self, generator: nn.Module, images: Tensor, keys: SampleKeys, network: int) -> Translation:
        """Translate images (N, C, H, W)."""
        translated = self._generate(generator, images, keys, network, TRANSLATION)
        return self._as_translation(translated) if self._has_holes(network) else Translation(translated, translated)

    @staticmethod
    def _as_translation(translated: Tensor) -> Translation:
        """Return the parts of what a generator with a hole head returned."""
        return Translation(measured(translated), measured(translated, learn_holes=False), translated)

    def _hole_share(self, translation: Translation, source: Tensor, real: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return the loss of the share of holes with its weight, for the loss, and without, for the log.

        None if the generator has no hole head.
        """
        if translation.with_holes is None:
            return None
        loss = hole_share(translation.with_holes, source, real)
        return self.config.hole_share * loss, loss.detach()

    def _remake(
        self, generator: nn.Module, images: Tensor, keys: SampleKeys, network: int, *passes: int, like: Tensor
    ) -> Tensor:
        """Run a generator on images (N, C, H, W), for results that should be equal to the images `like`.

        The results have the holes of `like`, and not those of a hole head.
        """
        translated = self._generate(generator, images, keys, network, *passes)
        return as_measured(translated, like) if self._has_holes(network) else translated

    def _generate(self, generator: nn.Module, images: Tensor, keys: SampleKeys, network: int, *passes: int) -> Tensor:
        """Run a generator: (N, C, H, W) → images of its output domain, of the same size.

        A hole head's plane is one more channel. `network` and `passes` choose the keys, as in `SampleKeys.of`.
        """
        with self.around(IN_GENERATORS):
            options = {"hole_plane": True} if self._has_holes(network) else {}
            translated: Tensor = generator(images, keys.of(network, *passes), **options)
        return translated

    def _has_holes(self, network: int) -> bool:
        return network == ST and self._hole_head

    def _judge(
        self, discriminator: nn.Module, images: Tensor, keys: SampleKeys | None, network: int, *passes: int
    ) -> Sequence[Tensor]:
        """Run a discriminator: (N, C, H, W) → its outputs. The other arguments are as in `_generate`.

        With keys, the images are augmented first, as `loss.diffaugment` says. The gradient of the depth comes last, as
        `discriminator.depth_gradient` says.
        """
        of_samples = None if keys is None else keys.of(network, *passes)
        with self.around(IN_DISCRIMINATORS):
            if of_samples is not None and self.config.diffaugment:
                with self.around(AUGMENT):
                    images = augmented(images, of_samples, self.config.diffaugment, self._colour_channels[network])
                    images = images.contiguous(memory_format=self.layout)
            if self._depth_gradient and images.shape[1] > self._colour_channels[network]:
                images = with_depth_gradient(images, self._depth_gradient)
                images = images.contiguous(memory_format=self.layout)
            logits: Sequence[Tensor] = discriminator(images, of_samples)
        return logits

    def _judged_later(self, fake: Tensor, keys: SampleKeys, network: int) -> Tensor:
        """Return the translations that a discriminator learns from, without a graph: `fake`, or some from its pool."""
        if network not in self._pools:
            return fake.detach()
        with self.around(EXCHANGE):
            return self._pools[network].exchange(fake, keys.of(network, FAKE))

    def _penalty(
        self, discriminator: nn.Module, real: Tensor, fake: Tensor, keys: SampleKeys, network: int
    ) -> tuple[Tensor, Tensor]:
        """Return a discriminator's gradient penalty with its weight, for the loss, and without, for the log."""

        def judge(images: Tensor) -> Sequence[Tensor]:
            return self._judge(discriminator, images, keys, network, PENALTY)

        with self._autocast(real):
            penalty = gradient_penalty(self.config.penalty, judge, real, fake, keys.of(network, PENALTY))
        return self.config.penalty_weight * self.config.penalty_every * penalty, penalty.detach()

    def _judge_mixtures(
        self,
        discriminator: nn.Module,
        images: tuple[Tensor, Tensor],
        logits: tuple[Sequence[Tensor], Sequence[Tensor]],
        losses: LossConfig,
        keys: SampleKeys,
        network: int,
    ) -> tuple[Tensor, Tensor]:
        """Return a discriminator's loss for mixtures of its real and fake images, and the parts of this loss.

        `images` and `logits` are those of the real and of the fake images. `losses` is from `losses_at`.
        """
        with self.around(MIX):
            mixed = mixture(*images, keys.of(network, MIXED), losses.cutmix, losses.cutmix_keeps_background)
            inputs = mixed.images.contiguous(memory_format=self.layout)
        with self._autocast(inputs):
            found = self._judge(discriminator, inputs, keys, network, MIXED)
        with self.around(MIX):
            return mixture_loss(losses, mixed, found, *logits)

    def _normalised(self, generators: nn.ModuleList) -> AbstractContextManager[None]:
        """Return a context in which all passes use the same normalised weights, made once in the type of the passes."""
        dtype = None if self.precision == torch.float32 else self.precision
        return spectral_norm_step(generators, self.networks.discriminators, dtype=dtype)

    def _autocast(self, batch: Tensor) -> torch.autocast:
        return torch.autocast(batch.device.type, dtype=self.precision, enabled=self.precision != torch.float32)

    def _keys(self, batch: Tensor) -> SampleKeys:
        """Return the keys of the prepared step. Each (sample, pass, network, step) of a run has a different key."""
        assert self._number is not None
        return self._keys_of(self._number, batch, self.first_sample)

    def _fixed_keys(self, batch: Tensor, first_image: int = 0) -> SampleKeys:
        """Return keys for held-out images, which follow from their indices. No step of training has them."""
        return self._keys_of(-1, batch, first_image)

    def _keys_of(self, step: Tensor | int, batch: Tensor, first: int) -> SampleKeys:
        passes = torch.arange(4 * 3, device=batch.device).view(4, 3, 1)
        samples = torch.arange(len(batch), device=batch.device) + (first + self.seed % 2**15 * 2**48)
        return SampleKeys((step * (4 * 3) + passes) * 2**20 + samples)


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Let gradients pass through the module inside the block, while its own parameters collect none."""
    parameters = list(module.parameters())  # one walk through the modules, which takes as long as a convolution
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
