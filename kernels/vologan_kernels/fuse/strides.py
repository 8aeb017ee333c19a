"""Whether the code of a model depends on how its tensors lie in memory.

torch's instance norm returns a contiguous tensor, also for a channels_last input. In a model that was moved to
channels_last, the fused norm keeps channels_last, which saves the copies. Code such as `x.view(n, -1)` works with the
first and raises an error with the second.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import CodeType, FunctionType, MethodType
from typing import Any

from torch import nn

_READING = {"view", "view_as", "view_as_complex", "as_strided", "as_strided_", "unflatten", "resize_", "resize_as_"}
_READING |= {"stride", "is_contiguous", "dim_order", "data_ptr", "storage", "untyped_storage", "numpy", "set_"}
_READING |= {"flatten", "ravel", "reshape", "reshape_as", "contiguous"}
"""Names of functions that need certain strides, that show them, or whose result is a view for some strides only.

A write into such a view changes the tensor itself, and a write into a copy does not.
"""


def reader_of_strides(model: nn.Module) -> str | None:
    """The name of a method or function that depends on strides, among all that the model's own code may call; or None.

    Code is found by the names that it uses, as far as they lead to functions.
    """
    seen: set[FunctionType] = set()
    for module in model.modules():
        members = [member for kind in type(module).__mro__ for name, member in vars(kind).items() if name != "__init__"]
        for function in _functions([*members, *vars(module).values()]):
            if found := _search(function, seen):
                return found
    return None


def _search(function: FunctionType, seen: set[FunctionType]) -> str | None:
    if function in seen or (function.__module__ or "").partition(".")[0] in ("torch", "vologan_kernels"):
        return None
    seen.add(function)
    names = set(_names(function.__code__))
    if _READING & names:
        return function.__qualname__
    called = [function.__globals__[name] for name in sorted(names & function.__globals__.keys())]
    cells = [cell.cell_contents for cell in function.__closure__ or () if cell != type(cell)()]
    for each in _functions([*called, *cells, getattr(function, "__wrapped__", None)]):
        if found := _search(each, seen):
            return found
    return None


def _functions(values: list[Any]) -> Iterator[FunctionType]:
    for value in values:
        value = getattr(value, "fget", None) if isinstance(value, property) else value
        value = value.__func__ if isinstance(value, staticmethod | classmethod | MethodType) else value
        if isinstance(value, FunctionType):
            yield value


def _names(code: CodeType) -> Iterator[str]:
    """The names of attributes and global variables in a function's code, and in the functions in it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
