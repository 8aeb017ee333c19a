"""The conditions under which a traced graph still does what the Python code does that it was traced from.

A trace is taken once, and the code may read values that change later. `reads.py` collects a condition for each such
value. `Guards.source` writes them as one function, which runs before each call. It is plain Python without loops,
because it costs time at each call, and because `torch.compile` must be able to follow it.
"""

from __future__ import annotations

import enum
import linecache
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

MISSING = object()
"""Stands for an attribute that does not exist."""

Frozen = tuple[type, Any]
"""A value with its type. Lists, dictionaries and sets are tuples, so that later changes do not show here."""

_PLAIN = {type(None), bool, int, float, complex, str, bytes, range, type(...)}
_PLAIN |= {torch.dtype, torch.device, torch.memory_format, torch.layout}


def freeze(value: Any) -> Frozen:
    """The value with its type, and the same for each member of a list, tuple, set or dictionary."""
    kind = type(value)
    if kind is list or kind is tuple:
        return kind, tuple([freeze(item) for item in value])
    if kind is dict:
        return kind, tuple([(freeze(key), freeze(item)) for key, item in value.items()])
    if kind is set or kind is frozenset:
        return kind, frozenset([freeze(item) for item in value])
    return kind, value


def is_plain(frozen: Frozen) -> bool:
    """Whether a frozen value consists of numbers, strings and the like, and nothing else."""
    kind, content = frozen
    if kind is dict:
        return all(is_plain(key) and is_plain(item) for key, item in content)
    if kind in (list, tuple, set, frozenset):
        return all(map(is_plain, content))
    return kind in _PLAIN or issubclass(kind, enum.Enum)


def _cannot_change(frozen: Frozen) -> bool:
    """Whether an object with this frozen value always keeps it."""
    kind, content = frozen
    return all(map(_cannot_change, content)) if kind is tuple else kind in _PLAIN


def _is_same(value: Any, frozen: Frozen) -> bool:
    return freeze(value) == frozen


class Guards:
    """Conditions on a module and on the Python code of its forward. The module is called `self` in them."""

    def __init__(self) -> None:
        self._lines: dict[str, None] = {}
        self._namespace: dict[str, Any] = {}
        self._names: dict[int, str] = {}
        self._variables = {"": "self"}

    def module(self, path: str) -> str:
        """The variable that holds the module at `path`. The module must exist."""
        if path not in self._variables:
            parent, _, name = path.rpartition(".")
            holder, variable = self.module(parent), f"m{len(self._variables)}"
            self._lines[f"{variable} = {holder}._modules.get({name!r})"] = None
            self._refuse_if(f"{variable} is None")
            # Python finds such attributes before nn.Module finds the child.
            self._refuse_if(f"{name!r} in {holder}.__dict__ or hasattr(type({holder}), {name!r})")
            self._variables[path] = variable
        return self._variables[path]

    def name(self, value: Any) -> str:
        """A name under which an expression may use `value`."""
        if id(value) not in self._names:
            word = getattr(value, "__name__", "value").rpartition(".")[2]
            word = word if word.isidentifier() else "value"
            self._names[id(value)] = f"{word}_{len(self._names)}"
            self._namespace[self._names[id(value)]] = value  # which keeps it alive, and its id its own
        return self._names[id(value)]

    def require(self, expression: str, value: Any) -> None:
        """Require that `expression` is this object, or that it equals this plain value."""
        frozen = freeze(value)
        if value is None or isinstance(value, bool | enum.Enum) or not is_plain(frozen):
            self._refuse_if(f"{expression} is not {self.name(value)}")
            return
        if frozen == (dict, ()):  # of nearly every function, and the comparison below takes longer
            self._refuse_if(f"{expression} or type({expression}) is not dict")
            return
        differs = f"not {self.name(_is_same)}({expression}, {self.name(frozen)})"
        if _cannot_change(frozen):  # then the same object has the same value, and nothing is called
            differs = f"{expression} is not {self.name(value)} and {differs}"
        self._refuse_if(differs)

    def require_attribute(self, path: str, name: str, value: Any) -> None:
        """Require the value of an attribute of the module at `path`. MISSING stands for no attribute."""
        self.require(f"getattr({self.module(path)}, {name!r}, {self.name(MISSING)})", value)

    def require_method(self, path: str, name: str, function: Any) -> None:
        """Require that the module at `path` has this function as a method of its class."""
        module = self.module(path)
        self.require(f"type({module}).{name}", function)
        # The second half is for torch.compile, which does not notice a later change of the first.
        self._refuse_if(f"{name!r} in {module}.__dict__ or {module}.{name}.__func__ is not {self.name(function)}")

    def require_not_none(self, path: str, name: str) -> None:
        """Require that an attribute of the module at `path` exists and is not None."""
        self._refuse_if(f"getattr({self.module(path)}, {name!r}, None) is None")

    def require_children(self, path: str, children: tuple[str, ...]) -> None:
        """Require that the module at `path` has these children, in this order."""
        self._refuse_if(f"tuple({self.module(path)}._modules) != {children!r}")

    def require_class(self, path: str, kind: type[nn.Module]) -> None:
        """Require the class of the module at `path`, before `fuse`."""
        self._refuse_if(f"{self.name(plain_class)}({self.module(path)}) is not {self.name(kind)}")

    def require_same_module(self, path: str, other: str) -> None:
        """Require that one module has both paths."""
        self._refuse_if(f"{self.module(path)} is not {self.module(other)}")

    def require_untouched(self, path: str, kind: type[nn.Module]) -> None:
        """Require that a call of the module at `path` runs the forward of torch's class `kind`, and no hooks."""
        module = self.module(path)
        self._refuse_if(f"type({module}) is not {self.name(kind)}")
        self._refuse_if(" or ".join(f"{module}.{hooks}" for hooks in _HOOKS))
        self.require_method(path, "forward", kind.forward)
        self.require(f"{self.name(nn.Module)}.__call__", nn.Module.__call__)
        self._refuse_if(f"{self.name(torch.nn.modules.module)}._has_any_global_hook()")

    def _refuse_if(self, condition: str) -> None:
        self._lines[f"if {condition}: return False"] = None

    def source(self) -> str:
        """The conditions as a function of the module. Something that no longer exists does not hold either."""
        conditions = "".join(f"        {line}\n" for line in self._lines)
        gone = "    except (AttributeError, KeyError):\n        return False\n"
        return f"def hold(self):\n    try:\n{conditions}        return True\n{gone}"

    def namespace(self) -> tuple[tuple[str, Any], ...]:
        """The objects that the function uses, by their names."""
        return tuple(self._namespace.items())


_HOOKS = "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"


def has_hooks(module: nn.Module) -> bool:
    """Whether the module has hooks that run when it is called."""
    return any(getattr(module, hooks) for hooks in _HOOKS)


def plain_class(module: nn.Module) -> type[nn.Module]:
    """The class of a module, before `fuse` made a subclass of it."""
    return getattr(type(module), "_class_before_fuse", type(module))


def compile_function(name: str, source: str, namespace: tuple[tuple[str, Any], ...], title: str) -> Callable[..., Any]:
    """The function `name` of `source`. Tracebacks can show its lines, under `title`."""
    filename = f"<{title} {hash(source):x}>"
    linecache.cache[filename] = len(source), None, source.splitlines(keepends=True), filename
    variables = dict(namespace)
    exec(compile(source, filename, "exec"), variables)
    return variables[name]
