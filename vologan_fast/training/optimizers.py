"""The optimisers that `OptimizerConfig` names, and their course over the epochs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn, optim
from vologan_kernels import NAdam

from vologan_fast.config import OptimizerConfig, ScheduleConfig
from vologan_fast.training.schedules import learning_rate_factor


class Swats(optim.Optimizer):
    """Starts adaptive and goes on as SGD from `switch` on (after Keskar & Socher, arXiv 1712.07628).

    They switch when the adaptive steps, projected on the gradient, suggest a learning rate for SGD; here the caller
    says when, and sets the rate, in `param_groups` as for any optimiser.
    """

    def __init__(self, adaptive: optim.Optimizer, sgd: optim.SGD) -> None:
        """Two optimisers over the same parameters, of which neither has made a step."""
        super().__init__([{"params": group["params"], "lr": group["lr"]} for group in adaptive.param_groups], {})
        self.adaptive, self.sgd = adaptive, sgd
        self.active = adaptive

    def switch(self) -> None:
        """Change to SGD, whose momentum starts empty; the adaptive moments are dropped."""
        self.active = self.sgd
        self.adaptive.state.clear()

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        for ours, theirs in zip(self.param_groups, self.active.param_groups, strict=True):
            theirs["lr"] = ours["lr"]
        return self.active.step(closure)

    def state_dict(self) -> dict[str, Any]:
        return {"switched": self.active is self.sgd, "active": self.active.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken, on the same side of the switch."""
        if state_dict["switched"]:
            self.switch()
        else:
            self.active = self.adaptive
        self.active.load_state_dict(state_dict["active"])
        for ours, theirs in zip(self.param_groups, self.active.param_groups, strict=True):
            ours["lr"] = theirs["lr"]


def build_optimizer(parameters: Iterable[nn.Parameter], config: OptimizerConfig) -> optim.Optimizer:
    """An optimiser over `parameters`; `start_epoch` sets its learning rate."""
    parameters = list(parameters)
    match config.kind:
        case "swats_adam":
            return Swats(_adam(parameters, config), _sgd(parameters, config))
        case "swats_nadam":
            return Swats(_nadam(parameters, config), _sgd(parameters, config))
        case "adam":
            return _adam(parameters, config)
        case "nadam":
            return _nadam(parameters, config)
        case "sgd":
            return _sgd(parameters, config)


def start_epoch(optimizer: optim.Optimizer, config: OptimizerConfig, schedule: ScheduleConfig, epoch: int) -> float:
    """Set the learning rate of `epoch`, counted from 0, and switch if it is time; returns the rate. Idempotent."""
    base = config.learning_rate
    if isinstance(optimizer, Swats) and epoch >= config.switch_at * schedule.epochs:
        base = config.switch_learning_rate
        if optimizer.active is not optimizer.sgd:
            optimizer.switch()
    rate = base * learning_rate_factor(epoch, schedule)
    for group in optimizer.param_groups:
        group["lr"] = rate
    return rate


def _adam(parameters: Sequence[nn.Parameter], config: OptimizerConfig) -> optim.Adam:
    adam = optim.Adam(
        parameters,
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.epsilon,
        amsgrad=config.amsgrad,
        fused=_fused(parameters),
        capturable=bool(_fused(parameters)),
    )
    adam.register_load_state_dict_post_hook(_order_as_parameters)
    return adam


def _nadam(parameters: Sequence[nn.Parameter], config: OptimizerConfig) -> NAdam:
    return NAdam(parameters, lr=config.learning_rate, betas=(config.beta1, config.beta2), eps=config.epsilon)


def _sgd(parameters: Sequence[nn.Parameter], config: OptimizerConfig) -> optim.SGD:
    sgd = optim.SGD(parameters, lr=config.learning_rate, momentum=config.momentum, fused=_fused(parameters))
    sgd.register_load_state_dict_post_hook(_order_as_parameters)
    return sgd


def _fused(parameters: Sequence[nn.Parameter]) -> bool | None:
    """On a GPU. torch's fused CPU kernels do not look at strides: a gradient in an order of its own is misread."""
    return True if all(parameter.is_cuda for parameter in parameters) else None


def _order_as_parameters(optimizer: optim.Optimizer) -> None:
    """Moments from a checkpoint lie as the parameters did there; fused kernels want them as the parameters do here."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if value.shape == parameter.shape and value.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter).copy_(value)
