"""The optimisers that `OptimizerConfig` names, and their learning rates over the epochs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn, optim
from vologan_kernels import NAdam

from vologan_fast.config import OptimizerConfig, ScheduleConfig
from vologan_fast.training.schedules import learning_rate_factor


class Swats(optim.Optimizer):
    """An adaptive optimiser that changes to SGD when `switch` is called (after Keskar & Socher, arXiv 1712.07628).

    In the paper, the adaptive steps, projected on the gradient, determine the time of the switch and the learning rate
    of SGD. Here the caller chooses the time and sets the rate, in `param_groups` as for any optimiser.
    """

    def __init__(self, adaptive: optim.Optimizer, sgd: optim.SGD) -> None:
        """Take two optimisers over the same parameters. Neither may have made a step."""
        super().__init__([{"params": group["params"], "lr": group["lr"]} for group in adaptive.param_groups], {})
        self.adaptive, self.sgd = adaptive, sgd
        self.active = adaptive

    def switch(self) -> None:
        """Change to SGD. Its momentum starts empty, and the adaptive moments are dropped."""
        self.active = self.sgd
        self.adaptive.state.clear()

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        for ours, theirs in zip(self.param_groups, self.active.param_groups, strict=True):
            theirs["lr"] = ours["lr"]
        return self.active.step(closure)

    def state_dict(self) -> dict[str, Any]:
        return {"switched": self.active is self.sgd, "active": self.active.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned, before or after the switch."""
        if state_dict["switched"]:
            self.switch()
        else:
            self.active = self.adaptive
        self.active.load_state_dict(state_dict["active"])
        for ours, theirs in zip(self.param_groups, self.active.param_groups, strict=True):
            ours["lr"] = theirs["lr"]


def build_optimizer(
    parameters: Iterable[nn.Parameter], config: OptimizerConfig, precision: torch.dtype = torch.float32
) -> optim.Optimizer:
    """Return the optimiser that `config` describes, over `parameters`. `start_epoch` sets its learning rate.

    `precision` is the data type of the networks' computations. It decides how torch computes the update on the CPU.
    """
    parameters = list(parameters)
    form = _form(parameters, precision)
    match config.kind:
        case "swats_adam":
            return Swats(_adam(parameters, config, form), _sgd(parameters, config, form))
        case "swats_nadam":
            return Swats(_nadam(parameters, config), _sgd(parameters, config, form))
        case "adam":
            return _adam(parameters, config, form)
        case "nadam":
            return _nadam(parameters, config)
        case "sgd":
            return _sgd(parameters, config, form, config.nesterov)


def load_optimizer(optimizer: optim.Optimizer, state: dict[str, Any], steps: int) -> None:
    """Restore what `optimizer.state_dict()` returned after so many steps of the run.

    Raises ValueError, or another error of Python, for a state that does not fit the parameters or the steps. torch
    itself would notice this in the next step, or not at all.
    """
    active = optimizer
    if isinstance(optimizer, Swats):
        if type(state["switched"]) is not bool:
            raise ValueError(f"switched: expected true or false, found {state['switched']!r}")
        active = optimizer.sgd if state["switched"] else optimizer.adaptive
    before = [dict(group) for group in active.param_groups]
    optimizer.load_state_dict(state)
    for built, group in zip(before, active.param_groups, strict=True):
        for name, value in built.items():
            if name not in ("params", "lr") and not _alike(value, group.get(name, value)):
                raise ValueError(f"{name}: expected a value such as {value!r}, found {group[name]!r}")
    made, expected = 0.0, _moments(active)
    for number, (parameter, values) in enumerate(active.state.items()):
        if not values.keys() >= expected:
            raise ValueError(f"parameter {number}: expected {sorted(expected)}, found {list(values)}")
        for name, value in values.items():
            number_alone = name in ("step", "mu_product")
            if value is None and name == "momentum_buffer":
                continue
            if not isinstance(value, Tensor) or value.shape != (() if number_alone else parameter.shape):
                raise ValueError(f"parameter {number}: {name} does not have the shape of the parameter")
            if not value.is_floating_point() or not value.isfinite().all():
                raise ValueError(f"parameter {number}: {name}: expected finite numbers")
        made = max(made, float(values.get("step", steps)))
    if active.state and made != steps:
        raise ValueError(f"expected an optimiser after {steps} steps, found one after {made:g}")


def _alike(expected: Any, found: Any) -> bool:
    """Return whether an option of an optimiser has the type of the one that was built, and is finite."""
    if isinstance(expected, tuple):
        pairs = zip(expected, found, strict=True) if isinstance(found, (tuple, list)) else ()
        return len(expected) == len(found) and all(_alike(*pair) for pair in pairs)
    if isinstance(expected, float):
        return isinstance(found, (int, float)) and math.isfinite(found)
    return expected is None or found is None or isinstance(found, type(expected))


def _moments(optimizer: optim.Optimizer) -> set[str]:
    """Return the names of what the optimiser keeps of each parameter."""
    if isinstance(optimizer, optim.SGD):
        return {"momentum_buffer"} if optimizer.defaults["momentum"] else set()
    names = {"step", "exp_avg", "exp_avg_sq"}
    names |= {"max_exp_avg_sq"} if optimizer.defaults.get("amsgrad") else set()
    return names | ({"mu_product"} if isinstance(optimizer, NAdam) else set())


def start_epoch(
    optimizer: optim.Optimizer, config: OptimizerConfig, schedule: ScheduleConfig, epoch: int, factor: float = 1.0
) -> float:
    """Set the learning rate for `epoch`, counted from 0, and return it. Repeated calls change nothing.

    The rate is multiplied by `factor`, for schedules that depend on more than the epoch. A `Swats` optimiser changes to
    SGD once the epoch has reached `config.switch_at`.
    """
    base = config.learning_rate
    if isinstance(optimizer, Swats) and epoch >= config.switch_at * schedule.epochs:
        base = config.switch_learning_rate
        if optimizer.active is not optimizer.sgd:
            optimizer.switch()
    rate = base * learning_rate_factor(epoch, schedule) * factor
    for group in optimizer.param_groups:
        group["lr"] = rate
    return rate


def _adam(parameters: Sequence[nn.Parameter], config: OptimizerConfig, form: dict[str, bool]) -> optim.Adam:
    adam = optim.Adam(
        parameters,
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.epsilon,
        amsgrad=config.amsgrad,
        capturable=parameters[0].is_cuda,
        **form,
    )
    adam.register_load_state_dict_post_hook(_order_as_parameters)
    return adam


def _nadam(parameters: Sequence[nn.Parameter], config: OptimizerConfig) -> NAdam:
    return NAdam(parameters, lr=config.learning_rate, betas=(config.beta1, config.beta2), eps=config.epsilon)


def _sgd(
    parameters: Sequence[nn.Parameter], config: OptimizerConfig, form: dict[str, bool], nesterov: bool = False
) -> optim.SGD:
    sgd = optim.SGD(parameters, lr=config.learning_rate, momentum=config.momentum, nesterov=nesterov, **form)
    sgd.register_load_state_dict_post_hook(_order_as_parameters)
    return sgd


def _form(parameters: Sequence[nn.Parameter], precision: torch.dtype) -> dict[str, bool]:
    """Return the options of torch's optimisers that choose how they compute: fused on a GPU, and with bfloat16.

    On the CPU, the fused form rounds otherwise than torch's loop over the parameters, and "foreach" gives its bits. The
    fused form takes a quarter of the loop's time, "foreach" two thirds. It reads a gradient in memory order. Autograd
    gives a gradient its parameter's strides.
    """
    on_gpu = all(parameter.is_cuda for parameter in parameters)
    return {"fused": True} if on_gpu or precision == torch.bfloat16 else {"foreach": True}


def _order_as_parameters(optimizer: optim.Optimizer) -> None:
    """Give the loaded moments the strides of the parameters, which fused kernels require.

    Moments from a checkpoint have the strides that the parameters had when it was saved.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if value.shape == parameter.shape and value.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter).copy_(value)
