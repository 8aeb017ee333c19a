"""Give a module a second forward, made from the graph of its original forward; and take it away again.

The caller traces a forward (`tracing.py`), changes the graph, and calls `rewrite`. The rewritten forward does not
replace the original one: it runs for calls for which it is known to be equivalent. For any other call the original
runs. So children, names, state, slices of an `nn.Sequential` and other methods all keep their meaning.

The class of the module becomes a subclass with the same name. The module stays the same object. So `isinstance`,
`copy.deepcopy`, `nn.DataParallel` and `torch.compile` work. A pickle holds the plain module.
"""

from __future__ import annotations

import abc
import copy
import copyreg
import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic

import torch
from torch import Tensor, nn

from vologan_kernels.fuse.guards import compile_function
from vologan_kernels.fuse.reads import Untraceable
from vologan_kernels.fuse.tracing import Trace, first_sentence, one_at_a_time

Namespace = tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Rewrite:
    """The parts of a rewritten class. Equal ones make one class."""

    source: str
    namespace: Namespace
    guards: str
    guards_namespace: Namespace
    inputs: tuple[str, ...]
    children: tuple[str, ...]
    summary: str
    around: Callable[[Callable[..., Any]], Callable[..., Any]] | None


_COPYING = {"__reduce__", "__reduce_ex__", "__deepcopy__", "__copy__", "__getstate__", "__setstate__", "__new__"}
_COPYING |= {"__getnewargs__", "__getnewargs_ex__"}


def check_rewritable(module: nn.Module) -> None:
    """Raise Untraceable for a module that would change if its class were a subclass.

    Such a module is copied or pickled in its own way, or its class has code that runs when a subclass is made.
    """
    if any(getattr(type(module), name, None) is not getattr(nn.Module, name, None) for name in _COPYING):
        raise Untraceable("is copied and pickled in a way of its own")
    kind = type(module)
    if type(kind) not in (type, abc.ABCMeta) or any(
        "__init_subclass__" in vars(base) for base in kind.__mro__ if base not in (object, Generic)
    ):
        raise Untraceable("has code that runs when a subclass of it is made")


def rewrite(
    module: nn.Module,
    traced: Trace,
    summary: str,
    around: Callable[[Callable[..., Any]], Callable[..., Any]] | None = None,
) -> None:
    """Let `module` run `traced.graph` where the guards of the trace hold. `summary` appears in the module's repr.

    `around` makes the forward that runs from that of the graph.
    Raises Untraceable if the graph cannot be written as Python.
    """
    code = traced.graph.python_code("self")
    namespace = tuple((name, value) for name, value in code.globals.items() if name in code.src)
    guards = traced.guards
    try:
        plan = Rewrite(
            code.src,
            namespace,
            guards.source(),
            guards.namespace(),
            traced.inputs,
            tuple(module._modules),
            summary,
            around,
        )
        module.__class__ = _rewritten_class(type(module), plan)  # type: ignore[arg-type]  # a class can be hashed
    except (SyntaxError, TypeError) as error:
        raise Untraceable(f"cannot be written as Python again ({first_sentence(error)})") from error


def is_rewritten(module: nn.Module) -> bool:
    """Whether this module has a second forward."""
    return hasattr(type(module), "_class_before_fuse")


def holds(module: nn.Module) -> bool:
    """Whether a module that has a second forward would run it now, for tensors."""
    with one_at_a_time:  # the conditions do not hold while another thread traces
        return bool(type(module)._holds(module))  # type: ignore[attr-defined]


def restore(module: nn.Module) -> None:
    """Give a module its own class again. Another library may have made a subclass of the rewritten class since."""
    kind: Any = type(module)
    if "_class_before_fuse" in vars(kind):
        module.__class__ = kind._class_before_fuse
        return
    for each in kind.__mro__:
        if any("_class_before_fuse" in vars(base) for base in each.__bases__):
            each.__bases__ = tuple(vars(base).get("_class_before_fuse", base) for base in each.__bases__)
            return


@functools.cache
def _rewritten_class(base: type[nn.Module], plan: Rewrite) -> type[nn.Module]:
    """A subclass of `base` with the same name, which runs the rewritten forward where it is equivalent."""
    title = f"forward of {base.__qualname__}"
    fused = compile_function("forward", plan.source, plan.namespace, f"fused {title}")
    if plan.around is not None:
        fused = plan.around(fused)
    hold = compile_function("hold", plan.guards, plan.guards_namespace, f"conditions of the fused {title}")
    count = len(plan.inputs)

    @functools.wraps(base.forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        given = (*args, *kwargs.values()) if kwargs else args
        if len(given) != count or _is_watched() or not hold(self):
            return base.forward(self, *args, **kwargs)
        for value in given:
            if type(value) is not Tensor and type(value) is not nn.Parameter:  # a subclass may have its own operations
                return base.forward(self, *args, **kwargs)
        return fused(self, *args, **kwargs)

    forward.__signature__ = inspect.signature(base.forward)  # type: ignore[attr-defined]  # for getfullargspec

    def reduce(self: nn.Module, protocol: Any) -> tuple[Any, ...]:
        """A pickle of the plain module. Code that loads it need not have this package, and may have changed."""
        return copyreg._reconstructor, (base, object, None), vars(self)  # type: ignore[attr-defined]

    def deepcopy(self: nn.Module, memo: dict[int, Any]) -> nn.Module:
        copied = object.__new__(type(self))
        memo[id(self)] = copied
        copied.__setstate__(copy.deepcopy(vars(self), memo))
        return copied

    def prepare_scriptable(self: nn.Module) -> nn.Module:
        """torch.jit.script compiles the source of the class, so it takes the plain module."""
        restore(self)
        return self

    def extra_repr(self: nn.Module) -> str:
        fits = tuple(self._modules) == plan.children  # a slice of an nn.Sequential has others
        return "\n".join(filter(None, [base.extra_repr(self), plan.summary if fits else ""]))

    members = {
        "forward": forward,
        "extra_repr": extra_repr,
        "__reduce_ex__": reduce,
        "__deepcopy__": deepcopy,
        "__prepare_scriptable__": prepare_scriptable,
        "_class_before_fuse": base,
        "_holds": hold,
    }
    kept = {name: getattr(base, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(base.__name__, (base,), members | kept)


# Found once, because this is asked in each call.
_tracing_state, _number_of_modes = torch._C._get_tracing_state, torch._C._len_torch_function_stack
_is_exporting = torch.compiler.is_exporting


def _is_watched() -> bool:
    """Whether the calls of single functions matter, and not only their result.

    torch.export, torch.onnx.export and torch.jit.trace record them for a file. Its readers need not have this package.
    A mode of `torch.overrides` may exchange them. The mode of `torch.set_default_device` does not.
    """
    if _tracing_state() is not None or _is_exporting():
        return True
    if _number_of_modes() == 0:
        return False
    modes = torch.overrides._get_current_function_mode_stack()
    return not all(isinstance(mode, torch.utils._device.DeviceContext) for mode in modes)


def _unpickle(base: type[nn.Module], plan: Any) -> nn.Module:
    """A module that version 0.1 pickled while it was fused. It is loaded as the plain module."""
    return object.__new__(base)
