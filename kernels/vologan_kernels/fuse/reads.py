"""Everything that Python code reads while it is traced, besides its arguments.

Code reads values in two ways. Both are watched in general, not case by case:

- It reads an attribute of a module. While a forward is traced, `nn.Module.__getattribute__` is ours.
- It reads a name: a global variable, a variable of an enclosing function, or a default argument. The names are in the
  bytecode of each function that is read, and so of each function that can be called.

A value that was read becomes a condition in `Guards` if it is plain (a number, a string, a tuple) or a function, whose
own code is read in turn. Any other value raises `Untraceable`, because its contents may change unseen: a list in a
module of Python, a namespace of options, a clock. So does code with effects besides its result.
"""

from __future__ import annotations

import builtins
import contextlib
import copy
import dis
import functools
import inspect
import itertools
import math
import operator
import sys
import threading
from collections.abc import Callable, Iterator
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vologan_kernels.fuse.guards import MISSING, Guards, freeze, has_hooks, is_plain, plain_class


class Untraceable(Exception):
    """The error for a forward that cannot be written as a graph. The message gives the reason, in words after "it"."""


_SAFE_TYPES: set[type] = {bool, int, float, complex, str, bytes, list, tuple, dict, set, frozenset, slice, range}
_SAFE_TYPES |= {enumerate, zip, map, filter, reversed, AssertionError, ValueError, NotImplementedError, TypeError}
_SAFE_BUILTINS = {abs, all, any, divmod, getattr, hasattr, isinstance, issubclass, len, max, min, pow, round, sum}
_READING_METHODS = {"children", "named_children", "modules", "named_modules", "get_submodule"}
_READING_METHODS |= {"items", "keys", "values", "__getitem__", "__iter__", "__len__", "__contains__"}
"""Methods of torch's modules and containers that only read children."""

_IMPLICIT = {"__call__", "__getattr__", "__getattribute__", "__setattr__", "__delattr__", "__getitem__", "__iter__"}
_IMPLICIT |= {"__len__", "__contains__", "__bool__", "__reversed__", "__eq__", "__hash__", "__enter__", "__exit__"}
"""Methods that run without being read as attributes."""

_EFFECTS = {
    **dict.fromkeys(("STORE_GLOBAL", "DELETE_GLOBAL"), "assigns a global variable"),
    "IMPORT_NAME": "imports a module",
    "LOAD_BUILD_CLASS": "defines a class",
    **dict.fromkeys(("PUSH_EXC_INFO", "SETUP_FINALLY", "SETUP_WITH"), "has a with or try statement"),
}
"""Instructions that no graph records, on Python 3.10 to 3.14."""

_ATTRIBUTE = {"LOAD_ATTR", "LOAD_METHOD"}
_ASSIGN_ANY = {"setattr", "delattr", "vars", "__dict__", "__setattr__", "__delattr__", "register_buffer"}
"""Names in code that may assign any attribute."""

_LOADS = {"LOAD_ATTR", "LOAD_GLOBAL", "LOAD_CONST"}
_SUPER_ATTRIBUTE = {*_ATTRIBUTE, "LOAD_SUPER_ATTR"}


class Reads:
    """What the forward of `root` reads. `tensor(path)` gives a proxy of a tensor, or of `training`."""

    def __init__(self, root: nn.Module, tensor: Callable[[str], Any]) -> None:
        self.guards = Guards()
        self._root = root
        self._tensor = tensor
        self._paths: dict[nn.Module, str] = {}
        for path, module in root.named_modules(remove_duplicate=False):
            self._paths.setdefault(module, path)
        self._touched: dict[nn.Module, None] = {}
        self._functions: set[FunctionType] = set()
        self._forward: FunctionType | None = None
        self._containers: dict[tuple[nn.Module, str], Any] = {}
        self._looks_at_classes = False
        self._called: dict[nn.Module, None] = {}
        self._tests_none = False

    # ---- attributes of modules ----

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Watch the attributes of modules in this thread. Assignments raise Untraceable."""
        thread, read = threading.get_ident(), object.__getattribute__
        methods = {name: vars(nn.Module)[name] for name in ("__setattr__", "__delattr__")}

        def watched_read(module: nn.Module, name: str) -> Any:
            if threading.get_ident() != thread:
                return read(module, name)
            caller = sys._getframe(1).f_globals.get("__name__", "")
            return read(module, name) if caller in _OWN else self._attribute(module, name, _is_torchs(caller))

        def refusing(name: str) -> Callable[..., None]:
            def method(module: nn.Module, attribute: str, *value: Any) -> None:
                if threading.get_ident() != thread:
                    return methods[name](module, attribute, *value)
                if value and isinstance(value[0], Tensor):
                    raise Untraceable("makes a tensor that does not come from its input")
                raise Untraceable(f"assigns {self._named(module, attribute)}")

            return method

        try:
            nn.Module.__getattribute__ = watched_read  # type: ignore[method-assign, assignment]
            for name in methods:
                setattr(nn.Module, name, refusing(name))
            yield
        finally:
            del nn.Module.__getattribute__
            for name, method in methods.items():
                setattr(nn.Module, name, method)

    def forward(self, kind: type, forward: FunctionType) -> None:
        """Guard the forward of the root, which `kind` has."""
        self._touch(self._root)
        self._forward = forward
        self.guards.require(f"{self.guards.name(kind)}.forward", forward)
        self.function(forward)

    def path(self, module: nn.Module) -> str:
        """The path of a module from the root."""
        if module not in self._paths:
            raise Untraceable(f"calls a {type(module).__name__} that is no child of it")
        return self._paths[module]

    def called(self, module: nn.Module) -> None:
        """Note that the forward calls this module."""
        self._called[module] = None

    def returned(self, value: Any) -> None:
        """Check that no list or dictionary of a module is part of what the forward returns. A graph has a copy."""
        for (module, name), (_, used) in self._containers.items():
            if value is used:
                raise Untraceable(f"returns {self._named(module, name)} itself")
        if isinstance(value, list | tuple | dict):
            for part in value.values() if isinstance(value, dict) else value:
                self.returned(part)

    def finish(self) -> None:
        """Check after the trace that no list or dictionary has changed, and guard the classes that matter."""
        for (module, name), (original, used) in self._containers.items():
            if freeze(used) != freeze(original):
                raise Untraceable(f"changes {self._named(module, name)}")
        if self._looks_at_classes:
            for module in self._touched:
                self.guards.require_class(self.path(module), plain_class(module))
        if self._tests_none:
            for module in self._called:
                if not _is_layer(module):
                    raise Untraceable("compares with None what may be the result of a child")
                self.guards.require_untouched(self.path(module), type(module))

    def _attribute(self, module: nn.Module, name: str, by_torch: bool) -> Any:
        if name == "_modules":
            return self._children(module)
        if name == "__class__":
            return object.__getattribute__(module, name)
        if not by_torch and name in _INTERNALS:
            raise Untraceable(f"reads {self._named(module, name)}")
        member = inspect.getattr_static(type(module), name, None)
        if isinstance(member, property) and not by_torch:
            self._touch(module)
            self._property(plain_class(module), name, member)
            return object.__getattribute__(module, name)
        value = self._value(module, name)
        if by_torch and not isinstance(value, Tensor | nn.Module):
            if name not in _INTERNALS and is_plain(freeze(value)):  # the length of a ParameterList, for example
                self._touch(module)
                self.guards.require_attribute(self.path(module), name, value)
            return value
        return self._judge_attribute(module, name, value)

    def _value(self, module: nn.Module, name: str) -> Any:
        try:
            return object.__getattribute__(module, name)
        except AttributeError:
            state = object.__getattribute__(module, "__dict__")
            for store in ("_parameters", "_buffers", "_modules"):
                if name in state[store]:
                    return state[store][name]
            self._touch(module)
            self.guards.require_attribute(self.path(module), name, MISSING)
            raise

    def _judge_attribute(self, module: nn.Module, name: str, value: Any) -> Any:
        """The value as the traced code gets it."""
        self._touch(module)
        path = self.path(module)
        inner = f"{path}.{name}".lstrip(".")
        if isinstance(value, nn.Module):
            return self._child(inner, value)
        if name != "training" and self._may_change_during_a_call(module, name, value):
            raise Untraceable(f"reads {self._named(module, name)}, which a child may change while it is called")
        if isinstance(value, Tensor) or name == "training":
            if isinstance(value, Tensor):
                self.guards.require_not_none(path, name)
            return self._tensor(inner)
        if isinstance(value, MethodType) and value.__self__ is module and name not in vars(module):
            self._method(module, name, value.__func__)
            return value
        frozen = freeze(value)
        if is_plain(frozen):
            self.guards.require_attribute(path, name, value)
            if isinstance(value, list | dict | set):
                return self._containers.setdefault((module, name), (value, copy.deepcopy(value)))[1]
            return value
        self._read_object(value, self._named(module, name))
        self.guards.require_attribute(path, name, value)
        return value

    def _may_change_during_a_call(self, module: nn.Module, name: str, value: Any) -> bool:
        """Whether the code of a child may assign this attribute, or change it in place if it is a list or the like.

        The forward itself assigns nothing.
        """
        assigned, used = self._names_of_children
        mutable = isinstance(value, list | dict | set)
        if mutable:  # two modules may have the same list
            states = [object.__getattribute__(each, "__dict__") for each in self._paths if each is not module]
            if any(value is held for state in states for held in state.values()):
                return True
        return module is not self._root and bool(name in assigned or _ASSIGN_ANY & used or (mutable and name in used))

    @functools.cached_property
    def _names_of_children(self) -> tuple[set[str], set[str]]:
        """The attributes that methods of children assign or delete, besides `__init__`; and all names in them."""
        assigned: set[str] = set()
        used: set[str] = set()
        for kind in {plain_class(module) for module in self._paths if module is not self._root}:
            for code in _codes_outside_init(kind):
                used.update(code.co_names)
                store = "STORE_ATTR", "DELETE_ATTR"
                assigned.update(each.argval for each in dis.get_instructions(code) if each.opname in store)
        return assigned, used

    def _children(self, module: nn.Module) -> dict[str, nn.Module]:
        children = object.__getattribute__(module, "_modules")
        self._touch(module)
        path = self.path(module)
        self.guards.require_children(path, tuple(children))
        for name, child in children.items():
            if child is not None:
                self._child(f"{path}.{name}".lstrip("."), child)
        return children

    def _child(self, path: str, child: nn.Module) -> nn.Module:
        """A child that is read at `path`. It may have been found at another path before."""
        self._touch(child)
        if path != self.path(child):
            self.guards.require_same_module(path, self.path(child))
        return child

    def _touch(self, module: nn.Module) -> None:
        """Note that the traced code has this module in its hands."""
        if module in self._touched:
            return
        self._touched[module] = None
        self.guards.module(self.path(module))
        for base in type(module).__mro__:
            own = _IMPLICIT.intersection(vars(base))
            if own and not _is_torchs(base.__module__) and base is not object:
                raise Untraceable(f"uses {base.__qualname__}.{min(own)}")

    def _method(self, module: nn.Module, name: str, function: Any) -> None:
        """A method of a module that is read, and probably called."""
        if not (_is_torchs(function.__module__) and name in _READING_METHODS):
            self._read_object(function, self._named(module, name))
        self.guards.require_method(self.path(module), name, function)

    def _property(self, kind: type, name: str, member: property) -> None:
        self.guards.require(f"{self.guards.name(kind)}.{name}", member)
        owner = next(base for base in kind.__mro__ if name in vars(base))
        self.guards.require(f"{self.guards.name(owner)}.__dict__[{name!r}]", member)  # for torch.compile
        self._read_object(member.fget, f"{kind.__qualname__}.{name}")

    def _named(self, module: nn.Module, name: str) -> str:
        return ".".join(filter(None, ["self", self._paths.get(module, type(module).__name__), name]))

    # ---- names in the code of functions ----

    def function(self, function: FunctionType) -> None:
        """Guard all that a function may read besides its arguments. Raises Untraceable."""
        if function in self._functions:
            return
        self._functions.add(function)
        code, name = function.__code__, self.guards.name(function)
        for variable in code.co_freevars:
            if variable != "__class__":
                raise Untraceable(f"uses {variable}, a variable of the function around {function.__qualname__}")
        if vars(function):
            raise Untraceable(f"uses {function.__qualname__}, a function with attributes")
        self.guards.require(f"{name}.__code__", code)  # reloading a file in a notebook exchanges the code
        self.guards.require(f"{name}.__dict__", {})
        for defaults in ("__defaults__", "__kwdefaults__"):
            value = getattr(function, defaults)
            if not all(map(_is_immutable, value.values() if isinstance(value, dict) else value or ())):
                raise Untraceable(f"has a default argument in {function.__qualname__} that may change")
            self.guards.require(f"{name}.{defaults}", value)
        for each in _nested(code):
            self._code(each, function)

    def _code(self, code: CodeType, function: FunctionType) -> None:
        instructions = [each for each in dis.get_instructions(code) if each.opname not in ("EXTENDED_ARG", "CACHE")]
        for i, instruction in enumerate(instructions):
            if instruction.opname in _EFFECTS:
                raise Untraceable(_EFFECTS[instruction.opname])
            if instruction.argval == "__class__" and instruction.opname in _ATTRIBUTE:
                raise Untraceable("reads the class of an object")
            if instruction.opname.startswith("MATCH_"):
                raise Untraceable("matches a value with a pattern")
            if instruction.opname == "IS_OP":
                if instructions[i - 1].opname != "LOAD_CONST" or instructions[i - 1].argval is not None:
                    raise Untraceable("compares objects by identity")
                self._tests_none |= not self._is_no_result(instructions, i - 2, code)
            if "JUMP" in instruction.opname and instruction.opname.endswith("_NONE"):
                self._tests_none |= not self._is_no_result(instructions, i - 1, code)
            if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
                attributes = []
                for following in instructions[i + 1 :]:
                    if following.opname not in _ATTRIBUTE:
                        break
                    attributes.append(following.argval)
                if instruction.argval == "super" and "super" not in function.__globals__:
                    names = (each.argval for each in instructions[i + 1 :] if each.opname in _SUPER_ATTRIBUTE)
                    self._super(next(names, ""), function)
                else:
                    self._global(instruction.argval, attributes, function)

    def _is_no_result(self, instructions: list[dis.Instruction], i: int, code: CodeType) -> bool:
        """Whether the value that instruction `i` loads, which is compared with None, is no result of a child.

        It is none if it is an attribute or a global variable, an argument of the forward, or a local variable that has
        only such values.
        """
        load = instructions[i]
        if instructions[i + 1].is_jump_target:  # the value may come from elsewhere
            return False
        if load.opname in _LOADS:
            return True
        if not load.opname.startswith("LOAD_FAST") or not isinstance(load.argval, str):
            return False
        arguments = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        if load.argval in arguments and (self._forward is None or code is not self._forward.__code__):
            return False
        for before, store in itertools.pairwise(instructions):
            names = store.argval if isinstance(store.argval, tuple) else (store.argval,)
            is_plain_store = store.opname == "STORE_FAST" and before.opname in _LOADS and not store.is_jump_target
            if "STORE_FAST" in store.opname and load.argval in names and not is_plain_store:
                return False
        return True

    def _global(self, name: str, attributes: list[str], function: FunctionType) -> None:
        """A global variable, with the attributes that are read from it at once. A module of Python is followed."""
        variables, spelled = function.__globals__, name
        module = sys.modules.get(variables.get("__name__", ""))
        if name not in variables:
            value = getattr(builtins, name, MISSING)
            if value is MISSING:
                return  # the code fails here, or it does not run
            if module is not None and vars(module) is variables:
                self.guards.require(f"getattr({self.guards.name(module)}, {name!r}, {self.guards.name(value)})", value)
            self._read_object(value, name)
            return
        value = variables[name]
        if module is not None and vars(module) is variables:
            expression = f"{self.guards.name(module)}.{name}"
        else:  # code that exec ran
            expression = f"{self.guards.name(_Variables(variables))}.get({name!r})"
        for attribute in attributes:
            follows = isinstance(value, ModuleType) or (isinstance(value, type) and value not in _SAFE_TYPES)
            if not follows or not hasattr(value, attribute):
                break
            value, spelled = getattr(value, attribute), f"{spelled}.{attribute}"
            expression = f"{expression}.{attribute}"
        if not _is_immutable(value):
            self._read_object(value, spelled)
        self.guards.require(expression, value)

    def _super(self, name: str, function: FunctionType) -> None:
        """A method that is called as `super().name`. Each class that may be meant is guarded."""
        cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
        own = cells["__class__"].cell_contents if "__class__" in cells else object
        for kind in dict.fromkeys((*own.__mro__, *plain_class(self._root).__mro__)):
            member = vars(kind).get(name)
            if member is not None and kind is not nn.Module:
                self._read_object(member, f"super().{name}")
            self.guards.require(f"{self.guards.name(kind)}.__dict__.get({name!r})", member)

    def _read_object(self, value: Any, spelled: str) -> None:
        """An object that is read as a whole. It is safe, or a function that is read in turn, or refused."""
        if value is isinstance or value is issubclass:
            self._looks_at_classes = True
        if isinstance(value, type):
            if value in _SAFE_TYPES or (issubclass(value, nn.Module) and _is_torchs(value.__module__)):
                return
        elif isinstance(value, FunctionType) and not _is_torchs(value.__globals__.get("__name__", "")):
            return self.function(value)
        elif _is_safe_function(value):
            return
        raise Untraceable(f"uses {spelled}, which may change or have effects that no graph shows")


class _Variables:
    """The global variables of code that is no module. It can be hashed, by identity."""

    def __init__(self, variables: dict[str, Any]) -> None:
        self.get = variables.get


_OWN = {__name__, "vologan_kernels.fuse.tracing", "vologan_kernels.fuse.guards"}
_INTERNALS = {"__dict__"} | (vars(nn.Module()).keys() - {"training"})
_WRAPPERS: list[Any] = [F.tanh, F.sigmoid, F.upsample, F.upsample_nearest, F.upsample_bilinear, torch.jit.is_scripting]
_WRAPPERS += [nn.Sequential.forward]
"""Functions of torch that only call other functions or modules."""


@functools.cache
def _recorded() -> set[int]:
    """The identities of the functions of torch that show in a graph, because they take a tensor."""
    functions = {id(each) for group in torch.overrides.get_overridable_functions().values() for each in group}
    return functions | {id(each) for each in _WRAPPERS}


def _is_safe_function(value: Any) -> bool:
    """Whether calls of this function show in a graph, or depend on nothing but its arguments."""
    if id(value) in _recorded() or (inspect.ismethoddescriptor(value) and hasattr(Tensor, value.__name__)):
        return True
    if not isinstance(value, BuiltinFunctionType):
        return False
    name, owner = value.__name__, value.__self__
    if value in _SAFE_BUILTINS or owner in (math, operator, sys.modules["_operator"]):
        return True
    if getattr(torch, name, None) is not value and getattr(torch._C._nn, name, None) is not value:
        return False
    plain = getattr(torch, name.removesuffix("_"), None) or getattr(F, name.removesuffix("_"), None)
    return name.endswith("_like") or (name.endswith("_") and id(plain) in _recorded())


def _codes_outside_init(kind: type) -> Iterator[CodeType]:
    """The code of the methods of a class and its parents, besides `__init__` and the classes of torch."""
    for base in kind.__mro__:
        for name, member in () if _is_torchs(base.__module__) else vars(base).items():
            for each in (getattr(member, "__func__", member), *(getattr(member, f, None) for f in ("fget", "fset"))):
                if isinstance(each, FunctionType) and name != "__init__":
                    yield from _nested(inspect.unwrap(each).__code__)


def _is_layer(module: nn.Module) -> bool:
    """Whether this is a layer of torch without children, as it was written. A call of it never returns None."""
    own = "forward" in object.__getattribute__(module, "__dict__")
    return _is_torchs(type(module).__module__) and not module._modules and not own and not has_hooks(module)


def _is_immutable(value: Any) -> bool:
    """Whether a value is plain and cannot be changed in place."""
    kind, content = freeze(value)
    if kind is tuple:
        return all(map(_is_immutable, value))
    return is_plain((kind, content)) and kind not in (list, dict, set)


def _nested(code: CodeType) -> Iterator[CodeType]:
    """A function's code, and the code of the functions in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _nested(constant)


def _is_torchs(module: str) -> bool:
    """Whether a module of Python belongs to torch."""
    return (module or "").partition(".")[0] == "torch"
