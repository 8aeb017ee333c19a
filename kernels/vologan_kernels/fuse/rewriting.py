"""Give a module a second forward, made from the graph of its original forward.

The caller traces a forward (`tracing.py`), changes the graph, and calls `rewrite`. The rewritten forward does not
replace the original one: it runs for calls for which it is known to be equivalent (`Rewrite.holds`). For any other call
the original runs. So children, names, state, slices of an `nn.Sequential` and other methods all keep their meaning.

The class of the module becomes a subclass with the same name. The module stays the same object. So `isinstance`,
`copy.deepcopy`, `pickle`, `nn.DataParallel` and `torch.compile` work.
"""

from __future__ import annotations

import functools
import linecache
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from vologan_kernels.fuse.tracing import Constant, Trace, Untraceable, first_sentence


@dataclass(frozen=True)
class Rewrite:
    """The parts of a rewritten class. They can be pickled, and equal ones make one class."""

    source: str
    inputs: tuple[str, ...]
    constants: tuple[tuple[str, Constant], ...]
    children: tuple[str, ...]
    absorbed: tuple[tuple[str, type[nn.Module]], ...]
    summary: str

    def holds(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether the graph is equivalent to the original forward for this call."""
        given = (*args, *kwargs.values())
        return (
            len(given) == len(self.inputs)
            and all(isinstance(value, Tensor) for value in given)
            and self.fits(module)
            and all(_is_same(getattr(module, name), value) for name, value in self.constants)
            and all(self._is_absorbed(module.get_submodule(path), kind) for path, kind in self.absorbed)
        )

    def fits(self, module: nn.Module) -> bool:
        """Whether the module has the children of the traced one. A slice of an `nn.Sequential` does not."""
        return tuple(module._modules) == self.children

    @staticmethod
    def _is_absorbed(child: nn.Module, kind: type[nn.Module]) -> bool:
        """Whether `child` need not be called: it was not exchanged, and it has no hooks."""
        return type(child) is kind and not has_hooks(child)


def _is_same(value: Any, constant: Constant) -> bool:
    return type(value) is type(constant) and value == constant


def has_hooks(module: nn.Module) -> bool:
    """Whether the module has hooks that run when it is called."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def rewrite(module: nn.Module, traced: Trace, absorbed: list[str], summary: str) -> None:
    """Let `module` run `traced.graph`.

    `absorbed` are the names of the children that the graph no longer calls. `summary` appears in the module's repr.
    Raises Untraceable if the graph cannot be written as Python that can be imported.
    """
    kinds = tuple((path, type(module.get_submodule(path))) for path in absorbed)
    children = tuple(module._modules)
    try:
        plan = Rewrite(_source(traced.graph), traced.inputs, traced.constants, children, kinds, summary)
        module.__class__ = _rewritten_class(type(module), plan)  # type: ignore[arg-type]  # a class can be hashed
    except (AttributeError, ImportError, SyntaxError) as error:
        raise Untraceable(f"cannot be written as Python again ({first_sentence(error)})") from error


def rewrite_of(module: nn.Module) -> Rewrite | None:
    """The rewrite of this module, or None if it has none."""
    return getattr(type(module), "_rewrite", None)


def _source(graph: fx.Graph) -> str:
    """The graph as Python, with its imports."""
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
    """A subclass of `base` with the same name, which runs the rewritten forward where it holds."""
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
    """The function `forward` of `source`. Tracebacks can show its lines."""
    linecache.cache[filename] = len(source), None, source.splitlines(keepends=True), filename
    namespace: dict[str, Any] = {}
    exec(compile(source, filename, "exec"), namespace)
    return namespace["forward"]


def _unpickle(base: type[nn.Module], plan: Rewrite) -> nn.Module:
    return object.__new__(_rewritten_class(base, plan))  # type: ignore[arg-type]  # a class can be hashed
