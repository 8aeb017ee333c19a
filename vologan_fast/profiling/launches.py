"""A recorder of Triton launches, which are not made. The tables here count and compile the records."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

from triton.runtime import JITFunction
from triton.runtime.interpreter import InterpretedFunction
from vologan_kernels import device
from vologan_kernels.adversarial_loss import kernels as adversarial_loss
from vologan_kernels.instance_norm import kernels as instance_norm
from vologan_kernels.nadam import kernels as nadam
from vologan_kernels.pixel_loss import kernels as pixel_loss
from vologan_kernels.planned_triton import forget_plans
from vologan_kernels.spectral_norm import kernels as spectral_norm

from vologan_fast.data.loaders import resident_triton

MODULES = (instance_norm, pixel_loss, adversarial_loss, spectral_norm, nadam, resident_triton)


@dataclass(frozen=True)
class Launch:
    kernel: Any
    programs: int
    arguments: dict[str, Any]
    """The arguments by name, with the launch options (num_warps, …)."""


class _Recorder:
    """A stand-in for a kernel that records its launches."""

    def __init__(self, kernel: Any, launches: list[Launch]) -> None:
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def launch(*arguments: Any, **options: Any) -> None:
            bound = dict(zip(self.kernel.arg_names, arguments, strict=False)) | options
            self.launches.append(Launch(self.kernel, math.prod(grid), bound))

        return launch


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """The launches made inside, in order. Tensors may be on meta."""
    launches: list[Launch] = []
    kernels = [
        (module, name, value)
        for module in MODULES
        for name, value in vars(module).items()
        if name.endswith("_kernel") and isinstance(value, (JITFunction, InterpretedFunction))
    ]
    try:
        for module, name, kernel in kernels:
            setattr(module, name, _Recorder(kernel, launches))
        yield launches
    finally:
        for module, name, kernel in kernels:
            setattr(module, name, kernel)


@contextmanager
def cut_for(multiprocessors: int) -> Iterator[None]:
    """Let launches on meta tensors have the shapes for a GPU with so many multiprocessors."""
    _forget()
    try:
        with mock.patch.object(device, "MULTIPROCESSORS", multiprocessors):
            yield
    finally:
        _forget()


def _forget() -> None:
    """Forget what was concluded from the number of multiprocessors."""
    device.multiprocessors.cache_clear()
    forget_plans()
