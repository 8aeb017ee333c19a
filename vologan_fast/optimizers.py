"""The optimisers that `OptimizerConfig` names, from torch."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn, optim

from vologan_fast.config import OptimizerConfig


def build_optimizer(parameters: Iterable[nn.Parameter], config: OptimizerConfig) -> optim.Optimizer:
    """An optimiser over `parameters`; its learning rate is set anew every epoch by the schedule."""
    betas = (config.beta1, config.beta2)
    match config.kind:
        case "adam":
            return optim.Adam(parameters, lr=config.learning_rate, betas=betas, eps=config.epsilon)
        case "nadam":
            return optim.NAdam(parameters, lr=config.learning_rate, betas=betas, eps=config.epsilon)
        case "sgd":
            return optim.SGD(parameters, lr=config.learning_rate, momentum=config.momentum)
