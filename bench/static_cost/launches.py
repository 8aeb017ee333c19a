"""The Triton launches that code makes, noted instead of made: what the tables here count and compile."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from vologan_kernels import instance_norm_triton

KERNELS = (
    "single_fwd_kernel",
    "statistics_kernel",
    "merge_statistics_kernel",
    "apply_fwd_kernel",
    "single_bwd_kernel",
    "sums_kernel",
    "merge_sums_kernel",
    "apply_bwd_kernel",
)


@dataclass(frozen=True)
class Launch:
    kernel: Any
    programs: int
    arguments: dict[str, Any]
    """By name, with the launch options (num_warps, …)."""


class _Recorder:
    """Stands where a kernel does and notes how it is launched."""

    def __init__(self, kernel: Any, launches: list[Launch]) -> None:
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid: tuple[int]) -> Any:
        def launch(*arguments: Any, **options: Any) -> None:
            bound = dict(zip(self.kernel.arg_names, arguments, strict=False)) | options
            self.launches.append(Launch(self.kernel, grid[0], bound))

        return launch


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """The launches made inside, in order. Tensors may be on meta."""
    launches: list[Launch] = []
    kernels = {name: getattr(instance_norm_triton, name) for name in KERNELS}
    try:
        for name, kernel in kernels.items():
            setattr(instance_norm_triton, name, _Recorder(kernel, launches))
        yield launches
    finally:
        for name, kernel in kernels.items():
            setattr(instance_norm_triton, name, kernel)
