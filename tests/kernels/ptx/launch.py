"""Kernels' launches, compiled for a GPU and executed on CPU tensors.

    with launches_executed(seed=0) as launched:
        instance_norm_act(x, impl="triton")

Inside, `kernel[grid](…)` of every kernel compiles for sm_90, as a launch with these arguments would, and executes the
PTX. Tensors have the addresses that `GlobalMemory` gives them, also in the tables of addresses that some kernels read.
"""

from __future__ import annotations

import ast
import functools
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ptx.compile import Compiled, Constant, Fields, Pointer, compiled
from ptx.execute import Grid, execute
from ptx.memory import GlobalMemory
from ptx.parse import Kernel, parse

ROOT = Path(__file__).parents[3]
PACKAGES = {"vologan_kernels": ROOT / "kernels" / "vologan_kernels", "vologan_fast": ROOT / "vologan_fast"}


@dataclass
class Launch:
    """A launch that was executed, or would have been."""

    kernel: str
    programs: int
    steps: int = 0


@contextmanager
def launches_executed(
    seed: int = 0,
    arch: int = 90,
    *,
    together: int | None = None,
    errors: bool = False,
    execute: bool = True,
    change: Callable[[str, str], str] = lambda name, ptx: ptx,
) -> Iterator[list[Launch]]:
    """The launches made inside, in order.

    `together` programs run in turns; None fills the width that is fast. `change` may rewrite a kernel's PTX, to break
    it. `errors` makes approximate instructions as wrong as they may be. Without `execute`, launches are only listed.
    """
    memory, launched = GlobalMemory(), []
    modules = [(importlib.import_module(module), name) for module, name in entry_kernels()]
    before = [getattr(module, name) for module, name in modules]
    data_ptr = torch.Tensor.data_ptr
    device = _Device(memory, launched, seed, arch, together, errors, execute, change)
    try:
        for module, name in modules:
            setattr(module, name, _Launcher(device, module.__name__, name))
        torch.Tensor.data_ptr = lambda tensor: memory.address_of(tensor)  # type: ignore[method-assign]
        yield launched
    finally:
        torch.Tensor.data_ptr = data_ptr  # type: ignore[method-assign]
        for (module, name), kernel in zip(modules, before, strict=True):
            setattr(module, name, kernel)


@functools.cache
def entry_kernels() -> list[tuple[str, str]]:
    """(module, name) of each @triton.jit function in the sources that no other such function calls."""
    found, used = [], set()
    for package, folder in PACKAGES.items():
        for path in sorted(folder.rglob("*.py")):
            text = path.read_text()
            if "triton.jit" not in text:
                continue
            module = ".".join((package, *path.relative_to(folder).with_suffix("").parts))
            for node in ast.parse(text).body:
                if isinstance(node, ast.FunctionDef) and any("jit" in ast.unparse(d) for d in node.decorator_list):
                    found.append((module, node.name))
                    used |= {name.id for name in ast.walk(node) if isinstance(name, ast.Name)}
    return [(module, name) for module, name in found if name not in used]


@dataclass
class _Device:
    memory: GlobalMemory
    launched: list[Launch]
    seed: int
    arch: int
    together: int | None
    errors: bool
    execute: bool
    change: Callable[[str, str], str]


@dataclass
class _Launcher:
    """A stand-in for a kernel."""

    device: _Device
    module: str
    name: str

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        shape = (*grid, 1, 1)[:3]

        def launch(*arguments: Any, **options: Any) -> None:
            device = self.device
            launched = Launch(self.name, shape[0] * shape[1] * shape[2])
            device.launched.append(launched)
            if not device.execute:
                return
            bare = {name: _bare(value, device.memory) for name, value in options.items()}
            made = compiled(
                self.module, self.name, tuple(_bare(a, device.memory) for a in arguments), bare, device.arch
            )
            numbers = _numbers(made, arguments, options, device.memory)
            kernel = _parsed(device.change(made.name, made.ptx))
            together = launched.programs if made.cooperative else device.together
            place = Grid(shape, 32 * made.warps, max(made.shared, 16))
            seed = device.seed + len(device.launched)
            launched.steps = execute(kernel, place, numbers, device.memory, seed, together, device.errors)

        return launch


_parsed: Callable[[str], Kernel] = functools.lru_cache(maxsize=64)(parse)


def _bare(value: Any, memory: GlobalMemory) -> Any:
    """An argument as the process that compiles gets it."""
    if isinstance(value, torch.Tensor):
        return Pointer(str(value.dtype), memory.address_of(value))
    if isinstance(value, tuple):
        parts = tuple(_bare(item, memory) for item in value)
        return Fields(type(value).__module__, type(value).__name__, parts) if hasattr(value, "_fields") else parts
    if type(value).__name__ == "dtype" and type(value).__module__.startswith("triton"):
        return Constant(str(value))
    return getattr(value, "value", value)  # of a constexpr


def _numbers(
    made: Compiled, arguments: tuple[Any, ...], options: dict[str, Any], memory: GlobalMemory
) -> list[int | float]:
    """The kernel's parameters: what of its arguments is not compiled in, and two scratch pointers of Triton's own."""
    given = dict(zip(made.signature, arguments, strict=False)) | options
    numbers: list[int | float] = []

    def add(kind: Any, value: Any) -> None:
        if isinstance(kind, tuple):
            for one, part in zip(kind, value, strict=True):
                add(one, part)
        elif kind != "constexpr":
            numbers.append(memory.address_of(value) if isinstance(value, torch.Tensor) else value)

    for name, kind in made.signature.items():
        if kind != "constexpr":
            add(kind, given[name])
    return [*numbers, 0, 0]
