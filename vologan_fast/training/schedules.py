"""Learning rate by epoch: a linear warm-up over W epochs, then a decay until epoch E."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from vologan_fast.config import ScheduleConfig

_PLATEAU_STATE = ("factor", "best", "waited", "epoch")


def learning_rate_factor(epoch: int, config: ScheduleConfig) -> float:
    """Return the factor of the base learning rate in `epoch`, counted from 0. It is in (0, 1].

    Warm-up: (e+1)/(W+1). After it, with p = (e−W)/(E−W) and n = e−W, the decay is

    - cosine: (1 + cos πp)/2, and linear: 1 − p
    - exponential: e^(−2πp), as published with VoloGAN. exponential_hundredth: 0.01^p
    - constant_linear, with C constant epochs: 1 − max(0, n+1−C)/(E−W−C+1). It is 1 in the first C epochs, and would be
      0 in the epoch after the last one (Zhu et al., arXiv 1703.10593)
    - step, with the step k and the factor f: f^⌊n/k⌋
    - plateau and none: 1. `Plateau` has the other factor of plateau

    After the last epoch of the schedule, the factor stays constant.
    """
    warmup, epochs = config.warmup_epochs, config.epochs
    epoch = min(epoch, epochs - 1)
    if epoch < warmup:
        return (epoch + 1) / (warmup + 1)
    passed = epoch - warmup
    progress = passed / (epochs - warmup)
    match config.decay:
        case "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * progress))
        case "linear":
            return 1.0 - progress
        case "constant_linear":
            falling = epochs - warmup - config.constant_epochs
            return 1.0 - max(0, passed + 1 - config.constant_epochs) / (falling + 1)
        case "exponential":
            return math.exp(-2.0 * math.pi * progress)
        case "exponential_hundredth":
            return 0.01**progress
        case "step":
            return config.step_factor ** (passed // config.step_epochs)
        case "plateau" | "none":
            return 1.0


class Plateau:
    """Factor of the learning rate that falls each time that a held-out loss stops falling.

    A loss is better if it is less than best · (1 − threshold). After more than `plateau_patience` epochs in sequence
    without a better one, `factor` is multiplied by `plateau_factor`, and the count starts again. Epochs of the warm-up
    do not count. With another decay than `plateau`, the factor stays 1.
    """

    def __init__(self, config: ScheduleConfig) -> None:
        self.config = config
        self.active = config.decay == "plateau"
        self.factor, self.best, self.waited = 1.0, math.inf, 0
        self.epoch = config.warmup_epochs - 1
        """The last epoch that counts so far."""

    def end_epoch(self, epoch: int, terms: Mapping[str, float]) -> None:
        """Take the held-out losses at the end of `epoch`, counted from 0. Repeated calls change nothing.

        `terms` is as `StepLosses.terms`.
        """
        if not self.active or epoch <= self.epoch:
            return
        self.epoch = epoch
        watched = f"/{self.config.plateau_loss}"
        loss = sum(value for name, value in terms.items() if name.startswith("generator") and name.endswith(watched))
        if loss < self.best * (1.0 - self.config.plateau_threshold):
            self.best, self.waited = loss, 0
            return
        self.waited += 1
        if self.waited > self.config.plateau_patience:
            self.factor, self.waited = self.factor * self.config.plateau_factor, 0

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _PLATEAU_STATE}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned. Raises KeyError or ValueError for anything else."""
        for name in _PLATEAU_STATE:
            if type(state[name]) not in (int, float) or math.isnan(state[name]):
                raise ValueError(f"plateau: {name}: expected a number, found {state[name]!r}")
            setattr(self, name, state[name])
