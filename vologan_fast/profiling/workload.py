"""A training step that can be watched: whatever `around` is, it is entered around the places of `parts.py`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch.profiler import record_function

from vologan_fast.build import build_training
from vologan_fast.capture import CapturedStep
from vologan_fast.config import Config
from vologan_fast.data import Dataset, open_loader
from vologan_fast.optimizers import start_epoch
from vologan_fast.profiling.parts import (
    AVERAGE,
    IN_DISCRIMINATORS,
    IN_GENERATORS,
    OPTIMIZE_DISCRIMINATORS,
    OPTIMIZE_GENERATORS,
    PHASE,
    PHASES,
    STEP,
    WAIT,
)


class Workload:
    """The loader, networks, optimisers and step of a training run; `run` takes one step, as the trainer does."""

    def __init__(self, config: Config, dataset: Dataset, device: torch.device) -> None:
        self.device = device
        self.networks, optimizers, self.step = build_training(config, device)
        self.optimizers = optimizers["generator"], optimizers["discriminator"]
        settings = config.generator_optimizer, config.discriminator_optimizer
        for optimizer, of_optimizer in zip(self.optimizers, settings, strict=True):
            start_epoch(optimizer, of_optimizer, config.schedule, 0)
        self.loader = open_loader(dataset, config.train.batch, config.train.seed, device=device)
        self.phases = PHASES[config.train.step]
        self.finished_steps = 0
        self.around: Callable[[str], AbstractContextManager[Any]] = record_function
        """What is entered around each annotated part of a step, given its name."""

    def __enter__(self) -> Workload:
        return self

    def __exit__(self, *_: object) -> None:
        self.loader.close()

    def run(self) -> None:
        with self.around(STEP):
            with self.around(WAIT):
                synthetic, real = next(self.loader)
            self.step(synthetic, real, self.finished_steps)
            self.finished_steps += 1
            with self.around(AVERAGE):
                self.networks.update_averages(self.finished_steps)

    def annotate(self) -> None:
        """Enter `around` for networks, optimisers and phases too. After a first step, which has chosen what runs.

        A step that was captured as a CUDA graph runs without from here on: nothing inside of one can be told apart.
        """
        if isinstance(self.step, CapturedStep):
            self.step = self.step.step
        for networks, name in (
            (self.networks.generators, IN_GENERATORS),
            (self.networks.discriminators, IN_DISCRIMINATORS),
        ):
            for network in networks:  # around what is compiled: nothing inside of it can be annotated
                call = network._compiled_call_impl or network._call_impl
                network._compiled_call_impl = self._annotated(call, name)
        for optimizer, name in zip(self.optimizers, (OPTIMIZE_GENERATORS, OPTIMIZE_DISCRIMINATORS), strict=True):
            optimizer.step = self._annotated(optimizer.step, name)  # type: ignore[method-assign]
        for method, phase in self.phases.items():
            setattr(self.step, method, self._annotated(getattr(self.step, method), PHASE + phase))

    def _annotated(self, call: Callable[..., Any], name: str) -> Callable[..., Any]:
        def annotated(*arguments: Any, **options: Any) -> Any:
            with self.around(name):
                return call(*arguments, **options)

        return annotated
