"""Whether an error says that Triton cannot compile here, or that something else went wrong.

Triton needs more than a GPU: a C compiler and Python's headers for its launcher, the driver's libcuda, ptxas, and a
cache folder that it can write to. When one of them is missing, it raises RuntimeError, CalledProcessError,
AssertionError, OSError or ImportError. Errors of a launch have the same types: a wrong argument, no memory left, errors
of CUDA. So the type does not tell. The functions that the error came through do.
"""

from __future__ import annotations

import traceback
from types import CodeType

_MODULES = {"triton.knobs", "triton.runtime.build", "triton.runtime.cache", "triton.runtime.driver"}
"""All functions of these modules prepare a launch."""
_FUNCTIONS = {
    ("triton.compiler.compiler", "compile"),
    ("triton.backends.nvidia.driver", "libcuda_dirs"),
    ("triton.backends.nvidia.driver", "library_dirs"),
}


def cannot_compile(error: Exception) -> bool:
    """Whether the error came while Triton prepared a launch: in a compiler, or in a search for its parts.

    All errors that Triton has types for count, such as CompilationError and OutOfResources, which name a kernel that
    this GPU cannot run. Errors of CUDA and of torch do not count.
    """
    if isinstance(error, MemoryError):
        return False
    if any(kind.__module__ == "triton.errors" for kind in type(error).__mro__):
        return True
    frames = [(_module(frame.f_globals), frame.f_code) for frame, _ in traceback.walk_tb(error.__traceback__)]
    packages = [module.partition(".")[0] for module, _ in frames]
    # Python's own modules may be the innermost ones: subprocess runs the compiler, os makes the folder.
    innermost = next((p for p in reversed(packages) if p in ("triton", "torch") or p.startswith("vologan")), "")
    return innermost == "triton" and any(_prepares(module, code) for module, code in frames)


def _prepares(module: str, code: CodeType) -> bool:
    importing = module.partition(".")[0] == "triton" and code.co_name == "<module>"
    return importing or module in _MODULES or (module, code.co_name) in _FUNCTIONS


def _module(names: dict[str, object]) -> str:
    return str(names.get("__name__", ""))
