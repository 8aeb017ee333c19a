"""Operations that are planned once for tensors that are alike, and run many times.

Between a call and its launches lie many decisions: shapes, strides, launch shapes, options. And Triton's own launch,
`kernel[grid](…)`, looks at every argument again: from types, values and alignments it makes a key, as a string, with
which it looks up the compiled kernel. Together they take as long as 30 small operations of PyTorch, and more if there
are several launches. So an operation is a plan, which is made once, and returns a function that only makes tensors and
launches:

    @planned(tensors=1)
    def double(x: Tensor, scale: float) -> Callable[[Tensor], Tensor]:
        launch = BoundLaunch(programs, (x.numel(),), {"SCALE": scale})

        def run(x: Tensor) -> Tensor:
            y = torch.empty_like(x)
            launch(double_kernel, x, y)
            return y

        return run

    y = double(x, 2.0)

A plan is used again if all is the same from which Triton or the plan could conclude anything.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch
import triton
from triton import knobs
from triton.compiler import CompiledKernel
from triton.runtime import driver

ALIGNMENT = 16
"""Bytes. Triton reads wider if an address is a multiple of it, so it compiles a kernel for each case. New tensors of
PyTorch have such addresses."""
LAUNCHERS = ("3.6.", "3.7.", "3.8.")
"""Versions of Triton whose launcher takes the arguments that `_bound` gives it."""
MOST_PLANS = 4096
"""Plans that an operation keeps. Then it forgets them all, so that ever new sizes do not fill the memory."""


_all_plans: list[dict[Any, Callable[..., Any]]] = []


def forget_plans() -> None:
    """Forget the plans of all operations. After a change of `vologan_kernels.launch`, they are planned anew."""
    for plans in _all_plans:
        plans.clear()


def planned(tensors: int = sys.maxsize) -> Callable[[Callable[..., Callable[..., Any]]], Any]:
    """A decorator of a plan, which makes it an operation.

    The first arguments of an operation are tensors: as many as `tensors` says, or all that have no keyword. All but the
    first may be None. The others are numbers, strings or tuples of these. The plan gets the arguments of the first
    call, and returns a function of the tensors. That function must keep no tensor. It runs with the device of the
    first tensor as the current one, on which Triton launches.
    """

    def decorate(plan: Callable[..., Callable[..., Any]]) -> Any:
        plans: dict[Any, Callable[..., Any]] = {}
        _all_plans.append(plans)

        @functools.wraps(plan)
        def operation(*arguments: Any, **options: Any) -> Any:
            given = arguments[:tensors]
            alike = [
                None if tensor is None else (tensor.dtype, tensor.shape, tensor.stride(), tensor.data_ptr() % ALIGNMENT)
                for tensor in given
            ]
            key = *alike, given[0].device, *arguments[tensors:], *options, *options.values()
            run = plans.get(key)
            if run is None:
                if len(plans) >= MOST_PLANS:  # several threads may have come past it together
                    plans.clear()
                run = plans[key] = _on_device(given[0].device, plan(*arguments, **options))
            return run(*given)

        return operation

    return decorate


def _on_device(device: torch.device, run: Callable[..., Any]) -> Callable[..., Any]:
    if device.type != "cuda" or torch.cuda.device_count() == 1:
        return run

    def run_there(*tensors: Any) -> Any:
        with torch.cuda.device(device):
            return run(*tensors)

    return run_there


class BoundLaunch:
    """A launch of a kernel with everything but the tensors: the number of programs, the numbers, the options.

    The kernel's arguments are in this order: the tensors, or tuples with tensors; the `numbers`; compile-time
    constants, which `options` names. `options` may also have options of Triton's compiler (num_warps, …).

    The first launch is Triton's own, and returns the compiled kernel. Later launches go straight to it. Triton's launch
    hooks see them all. But settings in `triton.knobs` that change after the first launch do not reach the later ones.
    """

    def __init__(self, programs: int, numbers: tuple[Any, ...], options: dict[str, Any]) -> None:
        self._programs, self._numbers, self._options = programs, numbers, options
        self._kernel: Any = None
        self._launch: Callable[..., None]

    def __call__(self, kernel: Any, *tensors: Any) -> None:
        """Launch `kernel` on the current device."""
        if kernel is self._kernel:  # a test may put a stand-in in the place of a kernel
            self._launch(*tensors)
            return
        compiled = kernel[(self._programs, 1, 1)](*tensors, *self._numbers, **self._options)
        if isinstance(compiled, CompiledKernel):  # and not None, as Triton's interpreter and stand-ins return
            constants = kernel.arg_names[len(tensors) + len(self._numbers) :]
            rest = *self._numbers, *(self._options[name] for name in constants)
            self._launch = _bound(compiled, self._programs, rest)
            self._kernel = kernel


def _bound(compiled: Any, programs: int, rest: tuple[Any, ...]) -> Callable[..., None]:
    """A function that launches a compiled kernel on the current device, with `rest` after the tensors.

    `compiled[grid]` is Triton's own way, and serves the hooks of profilers. While Triton's chains of hooks are empty,
    the launcher is called as Triton 3.6, 3.7 and 3.8 call it.
    """
    hooked = compiled[(programs, 1, 1)]
    if not triton.__version__.startswith(LAUNCHERS):
        return lambda *tensors: hooked(*tensors, *rest)
    run, function, metadata = compiled.run, compiled.function, compiled.packed_metadata
    device, stream_of = driver.active.get_current_device(), driver.active.get_current_stream
    hooks = knobs.runtime

    def launch(*tensors: Any) -> None:
        if getattr(hooks.launch_enter_hook, "calls", True) or getattr(hooks.launch_exit_hook, "calls", True):
            hooked(*tensors, *rest)
        else:
            run(programs, 1, 1, stream_of(device), function, metadata, None, None, None, *tensors, *rest)

    return launch
