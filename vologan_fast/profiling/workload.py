"""A training step for the profiler to watch."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch.profiler import record_function

from vologan_fast.config import Config
from vologan_fast.data import Dataset, open_loader
from vologan_fast.training.build import build_training
from vologan_fast.training.capture import CapturedStep
from vologan_fast.training.optimizers import start_epoch
from vologan_fast.training.places import AVERAGE, STEP, WAIT
from vologan_fast.training.step import TrainingStep


class Workload:
    """The loader, networks, optimisers and step of a training run. `run` takes one step, as the trainer does."""

    def __init__(self, config: Config, dataset: Dataset, device: torch.device) -> None:
        self.device = device
        self.networks, optimizers, self.step = build_training(config, device)
        self.optimizers = optimizers["generator"], optimizers["discriminator"]
        settings = config.generator_optimizer, config.discriminator_optimizer
        for optimizer, of_optimizer in zip(self.optimizers, settings, strict=True):
            start_epoch(optimizer, of_optimizer, config.schedule, 0)
        self.loader = open_loader(dataset, config.train.batch, config.train.seed, device=device)
        self.finished_steps = 0
        self._around: Callable[[str], AbstractContextManager[Any]] = record_function

    def __enter__(self) -> Workload:
        return self

    def __exit__(self, *_: object) -> None:
        self.loader.close()

    def run(self) -> None:
        """Take one step."""
        with self._around(STEP):
            with self._around(WAIT):
                synthetic, real = next(self.loader)
            self.step(synthetic, real, self.finished_steps)
            self.finished_steps += 1
            with self._around(AVERAGE):
                self.networks.update_averages(self.finished_steps)

    def uncapture(self) -> None:
        """Run the step without a CUDA graph from now on, because parts inside a graph cannot be told apart."""
        if isinstance(self.step, CapturedStep):
            self.step = self.step.step

    def watch(self, around: Callable[[str], AbstractContextManager[Any]]) -> None:
        """Enter `around(name)` around each place of `training/places.py` from now on. Call `uncapture` first."""
        assert isinstance(self.step, TrainingStep)
        self._around = self.step.around = around
