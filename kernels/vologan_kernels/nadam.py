"""NAdam (Dozat, 2016), all parameters of a model in one update.

For a parameter θ with gradient g at its t-th step, with moments m and v that start at 0 and Π that starts at 1:

    g   ← −g                          if maximize
    g   ← g + λθ                      weight decay; or, where it is decoupled, θ ← θ − ηλθ
    μ_t = β₁ (1 − ½ · 0.96^(tψ))      the momentum's own schedule, ψ = momentum_decay
    Π   ← Π · μ_t
    m   ← β₁ m + (1 − β₁) g
    v   ← β₂ v + (1 − β₂) g²
    θ   ← θ − η [(1 − μ_t) / (1 − Π) · g + μ_{t+1} / (1 − Π μ_{t+1}) · m] / (√v / √(1 − β₂^t) + ε)

This is `torch.optim.NAdam`, whose functional form is the plain form here. On a GPU, two launches do it for all
parameters (`nadam_triton.py`): they read θ, g, m, v and write θ, m, v, once each; what depends on t alone is computed
in float64. t and Π stay on the parameter's device: no step waits for the GPU, and a CUDA graph can hold one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.nadam import nadam
from torch.optim.optimizer import ParamsT

from vologan_kernels.dispatch import check_implementation, implementation
from vologan_kernels.pointer_table import PointerTable, is_dense

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class Update(NamedTuple):
    """What one parameter's step needs."""

    parameter: Tensor
    grad: Tensor
    state: dict[str, Tensor]
    group: dict[str, Any]


class Tables(NamedTuple):
    """What the kernels read beside the tensors; kept from step to step."""

    rows: PointerTable
    pieces: PointerTable


class NAdam(Optimizer):
    """`torch.optim.NAdam`, with the same arguments, state and results, in two kernel launches on a GPU.

    `params`: tensors, or dicts with tensors and options of their own, as for any optimiser of torch. `lr`: a number, or
    a tensor of one element; a tensor on the parameters' device is read where it is, as float32, so that a captured CUDA
    graph follows it. `impl`: "auto" takes the kernels on a GPU, "reference" torch's form, "triton" the kernels.

    Any of the options may change between steps; nothing is compiled anew. State dicts go from here to
    `torch.optim.NAdam` and back; `step` and `mu_product` become float32 on the parameter's device. Parameters may be
    float32, float64, bfloat16 or float16, the last two with arithmetic in float32 and moments in the parameter's dtype,
    and lie densely in any order of dimensions. A gradient or a moment in another order is copied to the parameter's.
    Complex parameters, tensor subclasses (DTensor) and views with gaps take torch's form, whatever `impl`.

    Raises ValueError for an option out of range, and RuntimeError for a sparse gradient.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        momentum_decay: float = 4e-3,
        decoupled_weight_decay: bool = False,
        *,
        maximize: bool = False,
        impl: str = "auto",
    ) -> None:
        self.impl = impl
        self._tables: dict[Any, Tables] = _new_tables()
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "momentum_decay": momentum_decay,
            "decoupled_weight_decay": decoupled_weight_decay,
            "maximize": maximize,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As any optimiser's. Raises ValueError for an option out of range."""
        _check({**self.defaults, **param_group})
        super().add_param_group(param_group)
        for parameter in self.param_groups[-1]["params"]:
            check_implementation("NAdam", self.impl, parameter)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient. `closure`, if given, is called first; its result is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for place, updates in self._updates().items():
            parameter = updates[0].parameter
            impl = self.impl if _is_flat(parameter) else "reference"
            implementation("NAdam", impl, parameter, reference_update, _kernels)(updates, self._tables[place])
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what this class or `torch.optim.NAdam` saved. Raises ValueError if the parameter groups differ."""
        super().load_state_dict(state_dict)
        # torch rounds mu_product to the parameter's dtype, and leaves step where it was.
        saved = [key for group in state_dict["param_groups"] for key in group["params"]]
        for key, parameter in zip(saved, (p for group in self.param_groups for p in group["params"]), strict=True):
            for name in ("step", "mu_product"):
                if key in state_dict["state"]:
                    value = torch.as_tensor(state_dict["state"][key][name])
                    self.state[parameter][name] = value.to(parameter.device, torch.float32)

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"impl": self.impl}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__dict__.setdefault("_tables", _new_tables())
        for group in self.param_groups:  # saved by a torch that did not have them
            group.setdefault("decoupled_weight_decay", False)
            group.setdefault("maximize", False)

    def _updates(self) -> dict[Any, list[Update]]:
        """Per device and dtype: what can be updated at once. State is made where there is none."""
        updates: dict[Any, list[Update]] = defaultdict(list)
        for group in self.param_groups:
            for parameter in group["params"]:
                grad = parameter.grad
                if grad is None:
                    continue
                if grad.layout != torch.strided:
                    raise RuntimeError(f"NAdam: a gradient of layout {grad.layout}: expected a dense one")
                state = self.state[parameter]
                if not state:
                    state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
                    state["mu_product"] = torch.ones((), dtype=torch.float32, device=parameter.device)
                    state["exp_avg"] = torch.zeros_like(parameter)
                    state["exp_avg_sq"] = torch.zeros_like(parameter)
                place = parameter.device, parameter.dtype, _is_flat(parameter)
                updates[place].append(Update(parameter, grad, state, group))
        return updates


def reference_update(updates: Sequence[Update], tables: Tables | None = None) -> None:
    """The plain form: torch's."""
    for _, members in groupby(updates, key=lambda update: id(update.group)):
        parameters, grads, states, (group, *_) = map(list, zip(*members, strict=True))
        nadam(
            parameters,
            grads,
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [state["mu_product"] for state in states],
            [state["step"] for state in states],
            decoupled_weight_decay=group["decoupled_weight_decay"],
            capturable=parameters[0].is_cuda,  # t and Π are on the GPU: they are not to be waited for
            has_complex=parameters[0].is_complex(),
            maximize=group["maximize"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            momentum_decay=group["momentum_decay"],
            eps=group["eps"],
        )


def _kernels() -> Callable[[Sequence[Update], Tables], None]:
    from vologan_kernels.nadam_triton import update

    return update


def _new_tables() -> dict[Any, Tables]:
    return defaultdict(lambda: Tables(PointerTable(), PointerTable()))


def _is_flat(parameter: Tensor) -> bool:
    """Whether the kernels can take its memory as a row of numbers."""
    plain = parameter.dtype in DTYPES and type(parameter) in (nn.Parameter, Tensor)
    return plain and is_dense(parameter.shape, parameter.stride())


def _check(options: dict[str, Any]) -> None:
    if isinstance(options["lr"], Tensor) and options["lr"].numel() != 1:
        raise ValueError(f"NAdam: lr has {options['lr'].numel()} elements: expected a number or a tensor of one")
    for name in ("lr", "eps", "weight_decay", "momentum_decay"):
        if not options[name] >= 0:
            raise ValueError(f"NAdam: {name} is {options[name]}: expected at least 0")
    betas = options["betas"]
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"NAdam: betas are {betas}: expected two numbers from 0 up to, but not, 1")
