"""The graph of a module's forward: its operations on children, parameters and inputs.

Python code can do much that a graph cannot hold. Such a forward raises `Untraceable`, with the reason.
"""

from __future__ import annotations

import inspect
import operator
import sys
import threading
from collections.abc import Callable, ValuesView
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
from torch import fx, nn

from vologan_kernels.fuse.guards import Guards
from vologan_kernels.fuse.reads import Reads, Untraceable


def _in_place(name: str) -> Callable[[Any, Any], Any]:
    """The function of operator with this name, for a graph.

    fx writes a call of `operator.iadd` as the statement `x += y`. For a number or a tuple that would change all names
    of x in the graph, not only one.
    """
    function = getattr(operator, name)

    def apply(x: Any, y: Any) -> Any:
        return function(x, y)

    apply.__name__ = apply.__qualname__ = name
    return apply


_NAMES = "iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "iand", "ior", "ixor", "ilshift", "irshift"
IN_PLACE = {name: _in_place(name) for name in _NAMES}
"""The functions of `x += y` and the like. They write into x if it is a tensor."""

_MAY_BE_NONE = {"grad", "_grad", "grad_fn", "_grad_fn", "_base", "_backward_hooks", "name"}
"""Attributes of a tensor that may be None. Code could tell None from a proxy without an error."""


@dataclass(frozen=True)
class Trace:
    """A graph, the names of its inputs, and the conditions under which it is equivalent to the forward."""

    graph: fx.Graph
    inputs: tuple[str, ...]
    guards: Guards


def trace(module: nn.Module) -> Trace:
    """The graph of `module.forward`, for calls that give a tensor for each argument without a default, and no others.

    Children are opaque. The graph reads `self.training`, parameters and buffers when it runs. The module is not
    changed. Raises Untraceable.
    """
    if "forward" in vars(module):
        raise Untraceable("has a forward of its own on the object, not of its class")
    forward = type(module).forward
    if isinstance(module, nn.Sequential) and forward is nn.Sequential.forward:
        if type(module).__iter__ is not nn.Sequential.__iter__:
            raise Untraceable("has an __iter__ of its own")
        return _chain(module)
    if not isinstance(forward, FunctionType) or hasattr(forward, "__wrapped__"):
        raise Untraceable("has a forward with a decorator")
    return _record(module, forward)


def _chain(sequential: nn.Module) -> Trace:
    """The graph of an `nn.Sequential`. It calls the children by their numbers, because one child may be used several
    times."""
    graph, guards = fx.Graph(), Guards()
    guards.require_children("", tuple(sequential._modules))
    guards.require(f"{guards.name(nn.Sequential)}.forward", nn.Sequential.forward)
    value = graph.placeholder("input")
    for name in sequential._modules:
        value = graph.call_module(name, (value,))
    graph.output(value)
    return Trace(graph, ("input",), guards)


one_at_a_time = threading.Lock()
"""Held during a trace. fx and `Reads` change nn.Module for that time."""


def _record(module: nn.Module, forward: FunctionType) -> Trace:
    """The graph of a forward, recorded while it runs with proxies."""
    inputs = _required_arguments(forward)
    try:
        with one_at_a_time:
            tracer = _Tracer(module, inputs)
            graph = tracer.trace(module)
            tracer.reads.finish()
    except Untraceable:
        raise
    except Exception as error:  # the forward is any code, and meets values that are not tensors
        raise Untraceable(f"cannot be traced ({first_sentence(error)})") from error
    for node in graph.nodes:
        node.type = None  # annotations would have to be imported
        if node.op == "get_attr" and not node.users:
            graph.erase_node(node)
    return Trace(graph, inputs, tracer.reads.guards)


def _required_arguments(forward: Callable[..., Any]) -> tuple[str, ...]:
    _, *parameters = inspect.signature(forward).parameters.values()
    variable = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
    required = [p for p in parameters if p.default is p.empty and p.kind not in variable]
    if any(p.kind is p.KEYWORD_ONLY for p in required):
        raise Untraceable("has a keyword-only argument without a default")
    return tuple(p.name for p in required)


class _Proxy(fx.Proxy):
    """A stand-in for a tensor, or for a number that comes from a tensor.

    It differs from fx's in two points. It records `x += y` as it is: other names for x see the sum, while fx would
    record `x = x + y`. And code cannot tell it from a tensor without an error: not by its class or its attributes, not
    by its text, and not by its place in a set or dictionary.
    """

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        _refuse_foreign("decides by the class of a tensor")
        return _Proxy

    def __hash__(self) -> int:
        _refuse_foreign("looks for a tensor or its size in a set or dictionary")
        return id(self)

    def __str__(self) -> str:
        _refuse_foreign("writes a tensor or its size as text")
        return super().__str__()

    def __repr__(self) -> str:
        _refuse_foreign("writes a tensor or its size as text")
        return super().__repr__()

    def __format__(self, specification: str) -> str:
        _refuse_foreign("writes a tensor or its size as text")
        return super().__format__(specification)

    def __getattr__(self, name: str) -> Any:
        if not hasattr(torch.Tensor, name) and not hasattr(tuple, name):
            raise Untraceable(f"reads .{name} of a tensor")
        if name in _MAY_BE_NONE:
            raise Untraceable(f"reads .{name} of a tensor")
        if callable(getattr(torch.Tensor, name, None)) or callable(getattr(tuple, name, None)):
            return _Method(self, name)
        return self.tracer.create_proxy("call_function", getattr, (self, name), {})  # read now, not when it is used

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in ("tracer", "node", "root", "attr", "_node"):
            raise Untraceable(f"assigns .{name} of a tensor")
        super().__setattr__(name, value)


class _Method(_Proxy, fx.proxy.Attribute):
    """A method of a proxy."""


def _recording(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, other: self.tracer.create_proxy("call_function", function, (self, other), {})


for _name, _function in IN_PLACE.items():
    setattr(_Proxy, f"__{_name}__", _recording(_function))


def _refuse_foreign(reason: str) -> None:
    """Raise Untraceable if the caller of the calling method is neither torch nor this package."""
    if sys._getframe(2).f_globals.get("__name__", "").partition(".")[0] not in ("torch", "vologan_kernels"):
        raise Untraceable(reason)


class _Tracer(fx.Tracer):
    def __init__(self, module: nn.Module, inputs: tuple[str, ...]) -> None:
        super().__init__(autowrap_modules=())  # type: ignore[arg-type]  # fx would exchange the functions of math
        self.inputs = inputs
        self.thread = threading.get_ident()
        self.reads = Reads(module, self.tensor)

    def tensor(self, path: str) -> fx.Proxy:
        """A parameter, a buffer, or `training`, read when the graph runs, at this place."""
        return self.create_proxy("get_attr", path, (), {})

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if threading.get_ident() != self.thread:  # fx catches the calls of all threads
            return forward(*args, **kwargs)
        if _has_mutable((args, kwargs.values())):
            raise Untraceable(f"gives a list, dictionary or set to {self.path_of_module(m)}, which may change it")
        self.reads.called(m)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        return attr_val  # `Reads` makes the proxies

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True

    def path_of_module(self, mod: nn.Module) -> str:
        return self.reads.path(mod)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        def forward(root: nn.Module, *inputs: fx.Proxy) -> Any:
            assert isinstance(root_fn, FunctionType)
            self.reads.forward(type(root), root_fn)
            with self.reads.watched():
                result = root_fn(root, *inputs)
            self.reads.returned(result)
            return result

        return forward, [self.root, *(self.create_proxy("placeholder", name, (), {}) for name in self.inputs)]


def _has_mutable(value: Any) -> bool:
    """Whether a list, dictionary or set is among the parts of a value."""
    if isinstance(value, fx.Proxy):
        return False
    if isinstance(value, slice):
        return _has_mutable((value.start, value.stop, value.step))
    if isinstance(value, tuple | frozenset | ValuesView):
        return any(map(_has_mutable, value))
    return isinstance(value, list | dict | set)


def first_sentence(error: Exception) -> str:
    """The first sentence of an error's message."""
    message = str(error).strip() or type(error).__name__
    return message.splitlines()[0].split(". ")[0]
