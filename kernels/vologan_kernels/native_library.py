"""The library for CPUs, `_native.so`, which is built from `kernels/csrc`.

It knows nothing of torch: an operation hands it pointers and sizes. It works with as many threads as torch does, and
they are the threads of torch.

`VOLOGAN_KERNELS_LEVEL` names another instruction set than the fastest one: avx512_bf16, avx2 or plain.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

LEVEL_VARIABLE = "VOLOGAN_KERNELS_LEVEL"
TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float64: 2}
"""VologanType in csrc/library.h."""


def refusal(x: Tensor) -> str | None:
    """Why the library cannot compute with x, or None if it can."""
    if not x.is_cpu:
        return f"x must be a CPU tensor, found one on {x.device.type}"
    if x.dtype not in TYPES:
        return f"x must be float32, bfloat16 or float64, found {x.dtype}"
    library = load()
    return library if isinstance(library, str) else None


def levels() -> tuple[str, ...]:
    """The instruction sets that this processor can run, the fastest first; none without the library."""
    library = load()
    return () if isinstance(library, str) else tuple(library.vologan_levels().decode().split())


def use_level(name: str) -> None:
    """Compute with another instruction set than the fastest one. Raises ValueError if this processor cannot run it."""
    library = load()
    if isinstance(library, str):
        raise ValueError(library)
    _use_level(library, name, "level")


@functools.cache
def load() -> Any:
    """The library (ctypes.CDLL), or a sentence that says why there is none."""
    path = _installed()
    if path is None:
        return "the library _native.so is not there: no C++ compiler was found when vologan_kernels was installed"
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        return f"the library _native.so cannot be loaded: {error}"
    for run in (library.vologan_norm_forward, library.vologan_norm_backward):
        run.argtypes, run.restype = [ctypes.c_char_p, ctypes.c_char_p], ctypes.c_int
    library.vologan_nadam.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64]
    library.vologan_nadam.restype = ctypes.c_int
    for transform in (library.vologan_winograd_gather, library.vologan_winograd_scatter):
        transform.argtypes, transform.restype = [ctypes.c_void_p], None
    library.vologan_use_level.argtypes = [ctypes.c_char_p]
    library.vologan_levels.restype = ctypes.c_char_p
    _share_threads(library)
    level = os.environ.get(LEVEL_VARIABLE)
    if level:
        _use_level(library, level, LEVEL_VARIABLE)
    return library


def _installed() -> Path | None:
    """The library beside this file. An editable installation has it in another folder of the package's path."""
    for folder in sys.modules[__package__].__path__:
        path = Path(folder) / "_native.so"
        if path.is_file():
            return path
    return None


def _share_threads(library: Any) -> None:
    """Let the library use torch's OpenMP runtime. Without it, the library has threads of its own."""
    try:
        # The symbols of whichever runtime this torch depends on.
        torchs = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        functions = [getattr(torchs, name) for name in ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")]
    except (OSError, AttributeError):
        return
    library.vologan_use_openmp(*(ctypes.cast(function, ctypes.c_void_p) for function in functions))


def _use_level(library: Any, name: str, source: str) -> None:
    if library.vologan_use_level(name.encode()):
        known = library.vologan_levels().decode()
        raise ValueError(f"{source} must be an instruction set of this processor ({known}), found {name!r}")
