"""The optimiser that users call."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from vologan_kernels.dispatch import check_implementation, implementation, runs_natively
from vologan_kernels.layouts import is_dense
from vologan_kernels.nadam import native, reference
from vologan_kernels.nadam.reference import Update
from vologan_kernels.pointer_table import PointerTable, Tables

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class NAdam(Optimizer):
    """`torch.optim.NAdam`, with the same arguments, state and results, in two kernel launches on a GPU.

    - `params` are tensors, or dicts of tensors and options, as for any optimiser of torch.
    - `lr` is a number or a tensor of one element. On a GPU, a tensor on the parameters' device is read where it is, as
      float32. So a captured CUDA graph follows it.
    - `impl`: "auto" takes the kernels on a GPU and the native library on a CPU, "triton" the kernels, "native" the
      library, "reference" torch's form.

    Any of the options may change between steps; nothing is compiled again. State dicts go from here to
    `torch.optim.NAdam` and back. `step` and `mu_product` become float32 on the parameter's device.

    Parameters may be float32, float64, bfloat16 or float16. For the last two, arithmetic is in float32 and moments are
    in the parameter's dtype. The library takes all of them but float16. Parameters lie densely, in any order of
    dimensions. A gradient or moment that lies in another order is copied. Complex parameters, tensor subclasses
    (DTensor) and views with gaps take torch's form, also with `impl="triton"`. "native" refuses complex ones.

    Raises ValueError for an option out of range, and for a gradient or moment that does not fit its parameter. Raises
    RuntimeError for a sparse gradient.
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
        """Add a group, as in any optimiser of torch. Raises ValueError for an option out of range."""
        _check({**self.defaults, **param_group})
        super().add_param_group(param_group)
        try:
            for parameter in self.param_groups[-1]["params"]:
                check_implementation("NAdam", self.impl, parameter, native=True)
        except ValueError:
            del self.param_groups[-1]
            raise

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient. A `closure` is called first, and its result is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for place, updates in self._updates().items():
            parameter, (*_, flat) = updates[0].parameter, place
            impl = self.impl if flat else "reference"
            if not _updated_natively(impl, updates):
                implementation("NAdam", impl, parameter, reference.update, _kernels)(updates, self._tables[place])
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state that this class or `torch.optim.NAdam` saved.

        Raises ValueError if parameter groups differ, or for a state of another optimiser.
        """
        given: dict[str, Any] = {}
        # They see the state as the user's hooks make it, and the user's hooks see what is loaded in the end.
        before = self.register_load_state_dict_pre_hook(lambda _, state: given.update(_checked(state)))
        after = self.register_load_state_dict_post_hook(lambda _: self._restore(given), prepend=True)
        try:
            super().load_state_dict(state_dict)
        finally:
            before.remove()
            after.remove()

    def _restore(self, given: dict[str, Any]) -> None:
        """Set t and Π to what was given: torch rounds Π to the parameter's dtype, and leaves t where it was."""
        saved = [key for group in given["param_groups"] for key in group["params"]]
        for key, parameter in zip(saved, (p for group in self.param_groups for p in group["params"]), strict=True):
            if given["state"].get(key):
                for name in ("step", "mu_product"):
                    value = torch.as_tensor(given["state"][key][name])
                    self.state[parameter][name] = value.to(parameter.device, torch.float32)

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"impl": self.impl}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__dict__.setdefault("_tables", _new_tables())
        for group in self.param_groups:  # a state of an older torch does not have them
            group.setdefault("decoupled_weight_decay", False)
            group.setdefault("maximize", False)

    def _updates(self) -> dict[Any, list[Update]]:
        """The updates of each launch, by device, dtype and form. Makes the state of parameters that have none."""
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
                flat = _is_flat(parameter) and type(grad) in (nn.Parameter, Tensor)
                place = parameter.device, parameter.dtype, flat
                updates[place].append(Update(parameter, grad, state, group))
        return updates


@torch._disable_dynamo  # torch.compile cannot look into the library
def _updated_natively(impl: str, updates: Sequence[Update]) -> bool:
    """Whether the native library has the parameters' dtype, and so has updated them."""
    if not runs_natively(impl, updates[0].parameter):
        return False
    native.update(updates)
    return True


def _kernels() -> Callable[[Sequence[Update], Tables], None]:
    from vologan_kernels.nadam import kernels

    return kernels.update


def _new_tables() -> dict[Any, Tables]:
    return defaultdict(lambda: Tables(PointerTable(), PointerTable()))


def _is_flat(parameter: Tensor) -> bool:
    """Whether the kernels can read the parameter as one row of numbers."""
    plain = parameter.dtype in DTYPES and type(parameter) in (nn.Parameter, Tensor) and not parameter.is_neg()
    return plain and is_dense(parameter.shape, parameter.stride())


def _checked(state_dict: dict[str, Any]) -> dict[str, Any]:
    """The same state dict. Raises ValueError if another optimiser has saved it."""
    for key in (key for group in state_dict["param_groups"] for key in group["params"]):
        state = state_dict["state"].get(key)
        for name in ("step", "mu_product", "exp_avg", "exp_avg_sq"):
            if state and name not in state:
                raise ValueError(f"NAdam: the state of parameter {key} has no {name}: expected a state of NAdam")
    return state_dict


def _check(options: dict[str, Any]) -> None:
    """Raise ValueError for an option out of range."""
    if isinstance(options["lr"], Tensor) and options["lr"].numel() != 1:
        raise ValueError(f"NAdam: lr has {options['lr'].numel()} elements: expected a number or a tensor of one")
    for name in ("lr", "eps", "weight_decay", "momentum_decay"):
        if not (_is_number(options[name]) and options[name] >= 0):
            raise ValueError(f"NAdam: {name} is {options[name]}: expected a number, at least 0")
    betas = options["betas"]
    two = isinstance(betas, Sequence) and len(betas) == 2
    if not (two and all(_is_number(beta) and 0 <= beta < 1 for beta in betas)):
        raise ValueError(f"NAdam: betas are {betas}: expected two numbers from 0 up to, but not, 1")


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) or (isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex())
