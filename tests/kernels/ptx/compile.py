"""Compile a launch for a GPU that is not there, in a process of its own.

The tests run with TRITON_INTERPRET=1. Under it, Triton cannot compile, because its decorators have made interpreted
functions of everything. So a second process imports Triton without it, and calls `JITFunction.warmup`. This does all
that a launch does before the launch itself: it specialises the arguments, and compiles. Only the driver is a stand-in,
which names the GPU.
"""

from __future__ import annotations

import functools
import importlib
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple


class Pointer(NamedTuple):
    """A tensor argument: what Triton asks of it."""

    dtype: str  # as torch.float32
    address: int


class Constant(NamedTuple):
    """A type of triton.language, as tl.float32, which is not the same object in two processes."""

    name: str


class Fields(NamedTuple):
    """A NamedTuple argument."""

    module: str
    name: str
    values: tuple[Any, ...]


class Compiled(NamedTuple):
    """What the compiler made."""

    name: str
    ptx: str
    signature: dict[str, Any]  # of each argument: Triton's name of its type, "constexpr", or a tuple of these
    warps: int
    shared: int  # bytes
    cooperative: bool


def compiled(module: str, kernel: str, arguments: tuple[Any, ...], options: dict[str, Any], arch: int) -> Compiled:
    """A kernel, compiled for sm_`arch` as a launch with these arguments would compile it."""
    return _process().submit(_compile, module, kernel, arguments, options, arch).result()


@functools.cache
def _process() -> ProcessPoolExecutor:
    spawn = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(1, mp_context=spawn, initializer=_start)


# ---- in the process that compiles -----------------------------------------------------------------------------------


def _start() -> None:
    os.environ.pop("TRITON_INTERPRET", None)


class _Tensor:
    """What a launch needs of a tensor to specialise a kernel on it."""

    def __init__(self, pointer: Pointer) -> None:
        import torch

        self.dtype = getattr(torch, pointer.dtype.removeprefix("torch."))
        self.address = pointer.address

    def data_ptr(self) -> int:
        return self.address


class _Driver:
    """A driver that only names its GPU."""

    def __init__(self, arch: int) -> None:
        from triton.backends.compiler import GPUTarget

        self.target = GPUTarget("cuda", arch, 32)

    def get_current_target(self) -> Any:
        return self.target

    def get_current_device(self) -> int:
        return self.target.arch  # each generation has kernels of its own

    def get_current_stream(self, device: int) -> int:
        return 0


def _compile(module: str, kernel: str, arguments: tuple[Any, ...], options: dict[str, Any], arch: int) -> Compiled:
    from triton.runtime import driver

    driver.set_active(_Driver(arch))
    function = getattr(importlib.import_module(module), kernel)
    given = [_argument(value) for value in arguments]
    made = function.warmup(*given, grid=(1,), **{name: _argument(value) for name, value in options.items()})
    return Compiled(
        name=kernel,
        ptx=made.asm["ptx"],
        signature={name: _plain(kind) for name, kind in made.src.signature.items()},
        warps=made.metadata.num_warps,
        shared=made.metadata.shared,
        cooperative=made.metadata.launch_cooperative_grid,
    )


def _plain(kind: Any) -> Any:
    return tuple(map(_plain, kind)) if isinstance(kind, tuple) else kind


def _argument(value: Any) -> Any:
    if isinstance(value, Pointer):
        return _Tensor(value)
    if isinstance(value, Constant):
        import triton.language as tl

        return {str(kind): kind for kind in vars(tl).values() if isinstance(kind, tl.dtype)}[value.name]
    if isinstance(value, Fields):
        return getattr(importlib.import_module(value.module), value.name)(*map(_argument, value.values))
    if isinstance(value, tuple):
        return tuple(map(_argument, value))
    return value
