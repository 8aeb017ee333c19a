"""Learning rate by epoch: a linear warm-up over W epochs, then a decay until epoch E."""

from __future__ import annotations

import math

from vologan_fast.config import ScheduleConfig

_EXPONENTIAL_END = 0.01


def learning_rate_factor(epoch: int, config: ScheduleConfig) -> float:
    """Return the factor of the base learning rate in `epoch`, counted from 0. It is in (0, 1].

    Warm-up: (e+1)/(W+1). After it, with p = (e−W)/(E−W): cosine (1+cos πp)/2, linear 1−p, exponential 0.01^p, none 1.
    After the last epoch of the schedule, the factor stays constant.
    """
    warmup, epochs = config.warmup_epochs, config.epochs
    epoch = min(epoch, epochs - 1)
    if epoch < warmup:
        return (epoch + 1) / (warmup + 1)
    progress = (epoch - warmup) / (epochs - warmup)
    match config.decay:
        case "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * progress))
        case "linear":
            return 1.0 - progress
        case "exponential":
            return _EXPONENTIAL_END**progress
        case "none":
            return 1.0
