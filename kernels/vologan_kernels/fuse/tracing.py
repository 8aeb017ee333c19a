"""The graph of a module's forward: its operations on children, parameters and inputs.

Python code can do much that a graph cannot hold. Such a forward raises `Untraceable`, with the reason.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import operator
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

Constant = bool | int | float | str | tuple[Any, ...] | None


class Untraceable(Exception):
    """The error for a forward that cannot be written as a graph. The message gives the reason, in words after "it"."""


@dataclass(frozen=True)
class Trace:
    """A graph, its inputs, and the attributes of the module on whose values it depends."""

    graph: fx.Graph
    inputs: tuple[str, ...]
    constants: tuple[tuple[str, Constant], ...] = ()


def trace(module: nn.Module) -> Trace:
    """The graph of `module.forward`, for calls that give a tensor for each argument without a default, and no others.

    Children are opaque. The graph reads `self.training` when it runs. The module is not changed. Raises Untraceable.
    """
    if "forward" in vars(module):
        raise Untraceable("has a forward of its own on the object, not of its class")
    if type(module).__reduce__ is not object.__reduce__ or type(module).__reduce_ex__ is not object.__reduce_ex__:
        raise Untraceable("is copied and pickled in a way of its own")
    if type(module).forward is nn.Sequential.forward:
        return _chain(module)
    return _record(module)


def _chain(sequential: nn.Module) -> Trace:
    """The graph of an `nn.Sequential`. It calls the children by their numbers, because one child may be used several
    times."""
    graph = fx.Graph()
    value = graph.placeholder("input")
    for name in sequential._modules:
        value = graph.call_module(name, (value,))
    graph.output(value)
    return Trace(graph, ("input",))


def _record(module: nn.Module) -> Trace:
    """The graph of a forward, recorded while it runs with proxies."""
    inputs = _required_arguments(type(module).forward)
    constants: dict[str, Constant] = {}
    containers: dict[str, Any] = {}
    random_states = random.getstate(), torch.get_rng_state()
    try:
        with _unrecorded_effects_refused():
            graph = _Tracer(inputs).trace(_watched(module, constants, containers))
    except Untraceable:
        raise
    except Exception as error:  # the forward is any code, and meets values that are not tensors
        raise Untraceable(f"cannot be traced ({first_sentence(error)})") from error
    if random.getstate() != random_states[0] or not torch.equal(torch.get_rng_state(), random_states[1]):
        random.setstate(random_states[0])
        torch.set_rng_state(random_states[1])
        raise Untraceable("draws random numbers that are not made from its input")
    for name, used in containers.items():
        if _members(used) != _members(vars(module)[name]):
            raise Untraceable(f"changes self.{name}")
    for node in graph.nodes:
        node.type = None  # annotations would have to be imported
        if node.op == "get_attr" and not node.users:
            graph.erase_node(node)
    return Trace(graph, inputs, tuple(constants.items()))


def _required_arguments(forward: Callable[..., Any]) -> tuple[str, ...]:
    _, *parameters = inspect.signature(forward).parameters.values()
    variable = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
    required = [p for p in parameters if p.default is p.empty and p.kind not in variable]
    if any(p.kind is p.KEYWORD_ONLY for p in required):
        raise Untraceable("has a keyword-only argument without a default")
    return tuple(p.name for p in required)


def _watched(module: nn.Module, constants: dict[str, Constant], containers: dict[str, Any]) -> nn.Module:
    """A stand-in with the module's own state. It records each plain value that is read. A write raises an error.

    A list, dictionary or set is recorded too, and the code that reads it gets a copy.
    """
    own = vars(module).keys() - vars(nn.Module()).keys()

    def read(self: nn.Module, name: str) -> Any:
        value = object.__getattribute__(self, name)
        if name in own and _is_constant(value):
            constants[name] = value
        if name in own and isinstance(value, list | dict | set):
            return containers.setdefault(name, copy.copy(value))
        return value

    def write(self: nn.Module, name: str, value: Any) -> None:
        if isinstance(value, Tensor):
            raise Untraceable("makes a tensor that does not come from its input")
        raise Untraceable(f"assigns self.{name}")

    kind = type(type(module).__name__, (type(module),), {"__getattribute__": read, "__setattr__": write})
    stand_in: nn.Module = object.__new__(kind)
    vars(stand_in).update(vars(module))
    return stand_in


def _is_constant(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(_is_constant(item) for item in value)
    return value is None or isinstance(value, bool | int | float | str)


def _members(container: Any) -> list[int]:
    """The identities of the members, because tensors and proxies have no plain equality."""
    members = (*container, *container.values()) if isinstance(container, dict) else container
    return [id(member) for member in members]


class _Proxy(fx.Proxy):
    """A proxy that records `x += y` as it is: other names for x see the sum. fx alone would record `x = x + y`."""

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
    proxy_buffer_attributes = True

    def __init__(self, inputs: tuple[str, ...]) -> None:
        super().__init__()
        self.inputs = inputs

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        assert isinstance(self.root, nn.Module)
        vars(self.root)["training"] = self.create_proxy("get_attr", "training", (), {})
        return root_fn, [self.root, *(self.create_proxy("placeholder", name, (), {}) for name in self.inputs)]


_UNRECORDED: tuple[tuple[type, str, str], ...] = (
    (torch.autograd.Function, "apply", "calls a torch.autograd.Function"),
    (torch.autograd.graph.saved_tensors_hooks, "__enter__", "recomputes or packs what it saves for the backward"),
    (torch.autocast, "__enter__", "sets an autocast mode"),
    (torch.no_grad, "__enter__", "sets a grad mode"),
    (torch.enable_grad, "__enter__", "sets a grad mode"),
    (torch.inference_mode, "__enter__", "sets a grad mode"),
    (torch.set_grad_enabled, "__init__", "sets a grad mode"),
)
"""Calls that run while a forward is traced, but do not show in the graph."""


@contextlib.contextmanager
def _unrecorded_effects_refused() -> Iterator[None]:
    originals = [vars(owner)[name] for owner, name, _ in _UNRECORDED]
    try:
        for owner, name, reason in _UNRECORDED:
            setattr(owner, name, _refusal(reason))
        yield
    finally:
        for (owner, name, _), original in zip(_UNRECORDED, originals, strict=True):
            setattr(owner, name, original)


def _refusal(reason: str) -> Callable[..., None]:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise Untraceable(reason)

    return refuse


def first_sentence(error: Exception) -> str:
    """The first sentence of an error's message."""
    message = str(error).strip() or type(error).__name__
    return message.splitlines()[0].split(". ")[0]
