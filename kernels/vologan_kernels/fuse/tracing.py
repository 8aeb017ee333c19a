"""The graph of a module's forward: its operations on children, parameters and inputs.

Python code can do much that a graph cannot hold. Such a forward raises `Untraceable`, with the reason.
"""

from __future__ import annotations

import inspect
import operator
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
from torch import fx, nn

from vologan_kernels.fuse.guards import Guards
from vologan_kernels.fuse.reads import Reads, Untraceable


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


def _record(module: nn.Module, forward: FunctionType) -> Trace:
    """The graph of a forward, recorded while it runs with proxies."""
    inputs = _required_arguments(forward)
    tracer = _Tracer(module, inputs)
    try:
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
    record `x = x + y`. And it has no class and no attributes by which code could tell it from a tensor.
    """

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        if sys._getframe(1).f_globals.get("__name__", "").partition(".")[0] in ("torch", "vologan_kernels"):
            return _Proxy
        raise Untraceable("decides by the class of a tensor")

    def __getattr__(self, name: str) -> Any:
        if not hasattr(torch.Tensor, name) and not hasattr(tuple, name):
            raise Untraceable(f"reads .{name} of a tensor")
        return super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in ("tracer", "node"):
            raise Untraceable(f"assigns .{name} of a tensor")
        super().__setattr__(name, value)

    def __iadd__(self, other: Any) -> fx.Proxy:
        return self._in_place(operator.iadd, other)

    def __isub__(self, other: Any) -> fx.Proxy:
        return self._in_place(operator.isub, other)

    def __imul__(self, other: Any) -> fx.Proxy:
        return self._in_place(operator.imul, other)

    def __itruediv__(self, other: Any) -> fx.Proxy:
        return self._in_place(operator.itruediv, other)

    def _in_place(self, function: Callable[..., Any], other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", function, (self, other), {})


class _Tracer(fx.Tracer):
    def __init__(self, module: nn.Module, inputs: tuple[str, ...]) -> None:
        super().__init__()
        self.inputs = inputs
        self.tensors: dict[str, fx.Proxy] = {}
        self.reads = Reads(module, self.tensor)

    def tensor(self, path: str) -> fx.Proxy:
        """A parameter, a buffer, or `training`, read when the graph runs."""
        if path not in self.tensors:
            self.tensors[path] = self.create_proxy("get_attr", path, (), {})
        return self.tensors[path]

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
                return root_fn(root, *inputs)

        return forward, [self.root, *(self.create_proxy("placeholder", name, (), {}) for name in self.inputs)]


def first_sentence(error: Exception) -> str:
    """The first sentence of an error's message."""
    message = str(error).strip() or type(error).__name__
    return message.splitlines()[0].split(". ")[0]
