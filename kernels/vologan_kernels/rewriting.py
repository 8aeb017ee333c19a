"""Give a module a second forward, made from the graph of its own.

`trace` records what the forward of one module does with its children, parameters and inputs; children are opaque. After
the caller has changed that graph, `rewrite` lets the module use it. The rewritten forward is an equivalent of the
original one, not a replacement: it runs where it is known to be equivalent (`Rewrite.holds`), and for any other call
the original runs. So children, names, state, slices of an `nn.Sequential` and other methods all keep their meaning.

A module changes its class to a subclass with the same name, and stays the object that it was: `isinstance`,
`copy.deepcopy`, `pickle`, `nn.DataParallel` and `torch.compile` work. What Python does while it is traced, and a graph
cannot hold, is an `Untraceable` with the reason.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import linecache
import operator
import random
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

Constant = bool | int | float | str | tuple[Any, ...] | None


class Untraceable(Exception):
    """A forward that cannot be written as a graph; the message says why, in words that follow "it"."""


@dataclass(frozen=True)
class Trace:
    """A graph, the inputs that it takes, and the module's attributes whose values it depends on."""

    graph: fx.Graph
    inputs: tuple[str, ...]
    constants: tuple[tuple[str, Constant], ...] = ()


@dataclass(frozen=True)
class Rewrite:
    """All that a rewritten class is made of: it can be pickled, and equal ones make one class."""

    source: str
    inputs: tuple[str, ...]
    constants: tuple[tuple[str, Constant], ...]
    children: tuple[str, ...]
    absorbed: tuple[tuple[str, type[nn.Module]], ...]
    summary: str

    def holds(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether this call is one that the graph stands for."""
        given = (*args, *kwargs.values())
        return (
            len(given) == len(self.inputs)
            and all(isinstance(value, Tensor) for value in given)
            and self.fits(module)
            and all(_is_same(getattr(module, name), value) for name, value in self.constants)
            and all(self._is_absorbed(module.get_submodule(path), kind) for path, kind in self.absorbed)
        )

    def fits(self, module: nn.Module) -> bool:
        """Whether the module has the children of the traced one; a slice of an `nn.Sequential` has not."""
        return tuple(module._modules) == self.children

    @staticmethod
    def _is_absorbed(child: nn.Module, kind: type[nn.Module]) -> bool:
        """Whether nobody would notice that `child` is not called: it was not exchanged, and no hook waits for it."""
        return type(child) is kind and not has_hooks(child)


def _is_same(value: Any, constant: Constant) -> bool:
    return type(value) is type(constant) and value == constant


def has_hooks(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


# ---- trace ----------------------------------------------------------------------------------------------------------


def trace(module: nn.Module) -> Trace:
    """The graph of `module.forward`, for calls that give a tensor for each argument without a default and no other.

    The graph reads `self.training` when it runs. The module is not changed. Raises Untraceable.
    """
    if "forward" in vars(module):
        raise Untraceable("has a forward of its own on the object, not of its class")
    if type(module).__reduce__ is not object.__reduce__ or type(module).__reduce_ex__ is not object.__reduce_ex__:
        raise Untraceable("is copied and pickled in a way of its own")
    if type(module).forward is nn.Sequential.forward:
        return _chain(module)
    return _record(module)


def _chain(sequential: nn.Module) -> Trace:
    """By slots, since one child may stand in several."""
    graph = fx.Graph()
    value = graph.placeholder("input")
    for name in sequential._modules:
        value = graph.call_module(name, (value,))
    graph.output(value)
    return Trace(graph, ("input",))


def _record(module: nn.Module) -> Trace:
    inputs = _required_arguments(type(module).forward)
    constants: dict[str, Constant] = {}
    containers: dict[str, Any] = {}
    random_states = random.getstate(), torch.get_rng_state()
    try:
        with _unrecorded_effects_refused():
            graph = _Tracer(inputs).trace(_watched(module, constants, containers))
    except Untraceable:
        raise
    except Exception as error:  # the forward is anybody's code, which meets values that are not tensors
        raise Untraceable(f"cannot be traced ({_first_sentence(error)})") from error
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
    """A stand-in with the module's own state, which notes what plain values it is asked for and refuses writes.

    It gives copies of lists, dictionaries and sets, which are noted too.
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
    """The identities of what is inside: tensors and proxies have no plain equality."""
    members = (*container, *container.values()) if isinstance(container, dict) else container
    return [id(member) for member in members]


class _Proxy(fx.Proxy):
    """Records `x += y` as what it is: other names for x see the sum. fx alone would record `x = x + y`."""

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
"""Calls that run while a forward is traced without a trace of them in the graph."""


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


def _first_sentence(error: Exception) -> str:
    message = str(error).strip() or type(error).__name__
    return message.splitlines()[0].split(". ")[0]


# ---- rewrite --------------------------------------------------------------------------------------------------------


def rewrite(module: nn.Module, traced: Trace, absorbed: list[str], summary: str) -> None:
    """Let `module` run `traced.graph`. `absorbed` names the children that the graph no longer calls.

    `summary` appears in the module's repr. Raises Untraceable if the graph cannot be written as importable Python.
    """
    kinds = tuple((path, type(module.get_submodule(path))) for path in absorbed)
    children = tuple(module._modules)
    try:
        plan = Rewrite(_source(traced.graph), traced.inputs, traced.constants, children, kinds, summary)
        module.__class__ = _rewritten_class(type(module), plan)  # type: ignore[arg-type]  # a class can be hashed
    except (AttributeError, ImportError, SyntaxError) as error:
        raise Untraceable(f"cannot be written as Python again ({_first_sentence(error)})") from error


def rewrite_of(module: nn.Module) -> Rewrite | None:
    """What `rewrite` made of this module, or None."""
    return getattr(type(module), "_rewrite", None)


def _source(graph: fx.Graph) -> str:
    code = graph.python_code("self")
    used = [(name, value) for name, value in code.globals.items() if name in code.src]
    return "".join(_import(name, value) for name, value in used) + code.src


def _import(name: str, value: Any) -> str:
    if isinstance(value, types.ModuleType):
        return f"import {value.__name__} as {name}\n"
    if isinstance(value, float):
        return f"{name} = float('{value}')\n"
    if value is type(None):
        return f"{name} = type(None)\n"
    return f"from {value.__module__} import {value.__qualname__} as {name}\n"


@functools.cache
def _rewritten_class(base: type[nn.Module], plan: Rewrite) -> type[nn.Module]:
    rewritten = _compile(plan.source, f"<rewritten forward of {base.__qualname__} {hash(plan.source):x}>")

    @functools.wraps(base.forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        chosen = rewritten if plan.holds(self, args, kwargs) else base.forward
        return chosen(self, *args, **kwargs)

    def reduce(self: nn.Module, protocol: Any) -> tuple[Any, ...]:
        reduced: Any = object.__reduce_ex__(self, max(protocol, 2))
        return _unpickle, (base, plan), *reduced[2:]

    def extra_repr(self: nn.Module) -> str:
        return "\n".join(filter(None, [base.extra_repr(self), plan.summary if plan.fits(self) else ""]))

    members = {"forward": forward, "__reduce_ex__": reduce, "extra_repr": extra_repr, "_rewrite": plan}
    kept = {name: getattr(base, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(base.__name__, (base,), members | kept)


def _compile(source: str, filename: str) -> Callable[..., Any]:
    """The function `forward` of `source`, whose lines tracebacks can show."""
    linecache.cache[filename] = len(source), None, source.splitlines(keepends=True), filename
    namespace: dict[str, Any] = {}
    exec(compile(source, filename, "exec"), namespace)
    return namespace["forward"]


def _unpickle(base: type[nn.Module], plan: Rewrite) -> nn.Module:
    return object.__new__(_rewritten_class(base, plan))  # type: ignore[arg-type]  # a class can be hashed
