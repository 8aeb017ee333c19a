"""The choice of an implementation: Triton kernels on a GPU, a native library or plain PyTorch elsewhere.

The choice depends on the tensor and the caller's `impl`, and on nothing global, with two exceptions. Once Triton has
failed to compile on this machine, "auto" stays with PyTorch. And some callers cannot use an operation of ours at all
(`only_standard_operations`). They get its definition, as operations of PyTorch that they know.

An operation that the native library has, too, has one more `impl`, "native" (`native_library.py`).
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from vologan_kernels import native_library
from vologan_kernels.triton_setup import cannot_compile

IMPLEMENTATIONS = ("auto", "reference", "triton")

_given_up = False


@torch.compiler.assume_constant_result  # Dynamo guards the state of torch.func and of forward mode by itself
def only_standard_operations() -> bool:
    """Whether a result must come from standard operations of PyTorch. torch.compile is no such case.

    - torch.export, torch.jit.trace and the exporters to ONNX record operations. The record must run where this package
      is not installed.
    - The transforms of torch.func and forward-mode differentiation need rules for each operation. The standard
      operations have rules of every kind.
    """
    recorded = torch.compiler.is_exporting() or torch.jit.is_tracing()
    transformed = torch._C._functorch.peek_interpreter_stack() is not None
    return recorded or transformed or forward_ad._current_level >= 0


def unobserved() -> bool:
    """Whether nothing looks at the operations of PyTorch: no tracer, transform, mode or profiler.

    Then an operation of ours may do its work at once. This is asked in each call, so it asks no more than it must.
    """
    return not (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or torch.autograd._profiler_enabled()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
        or torch._C._get_tracing_state() is not None
        or torch.compiler.is_exporting()
    )


def is_plain(tensor: Tensor | None) -> bool:
    """Whether a tensor's memory holds its values.

    It is no subclass, not sparse, no negated view and no batch of gradients.
    """
    return tensor is None or (
        (type(tensor) is Tensor or type(tensor) is nn.Parameter)
        and tensor.layout is torch.strided
        and not tensor.is_neg()
        and not torch._C._functorch.is_legacy_batchedtensor(tensor)
    )


def is_batched(grad: Tensor) -> bool:
    """Whether a backward runs for many gradients at once (`is_grads_batched=True`). Our operations cannot do that."""
    return not torch.compiler.is_compiling() and torch._C._functorch.is_legacy_batchedtensor(grad)


def distinct(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors, each that is there again as a view. Dynamo refuses a Function that gets one twice (torch 2.13)."""
    return [
        tensor.view_as(tensor) if any(tensor is other for other in tensors[:i]) else tensor
        for i, tensor in enumerate(tensors)
    ]


def implementation(
    operation: str, impl: str, x: Tensor, reference: Callable[..., Any], kernels: Callable[[], Callable[..., Any]]
) -> Callable[..., Any]:
    """The function that computes an operation on `x`: `reference`, or the result of `kernels()`, which imports Triton.

    If Triton cannot compile a kernel, "auto" falls back to the reference. It does so for good, with one warning that
    names `operation`. "triton" raises the error. `triton_setup.py` says which errors mean this.
    """
    if not _takes_kernels(impl, x):
        return reference

    def run(*arguments: Any, **options: Any) -> Any:
        try:
            return kernels()(*arguments, **options)
        except Exception as error:
            if impl == "triton" or not cannot_compile(error):
                raise
            _give_up(operation, error)
            return reference(*arguments, **options)

    return run


def runs_natively(impl: str, x: Tensor) -> bool:
    """Whether an operation that the native library has computes there on `x`."""
    return impl == "native" or (impl == "auto" and native_library.refusal(x) is None)


def launches_directly(impl: str, x: Tensor, *others: Tensor | None, native: bool = False) -> bool:
    """Whether an operation on `x` and others may call its kernels by itself, and not as an operation of PyTorch.

    PyTorch's dispatcher takes as long as some launches. It must see an operation where something else looks at it:
    torch.compile, a TorchDispatchMode (which tracers and counters are), a profiler, or a subclass of Tensor. It also
    computes the values of a negated view, such as `z.conj().imag`, whose memory has the other sign.

    `native`: the native library has this operation.
    """
    if torch.compiler.is_compiling():
        return False
    if not _takes_kernels(impl, x) and not (native and x.numel() > 0 and runs_natively(impl, x)):
        return False
    if torch._C._len_torch_dispatch_stack() or torch.autograd._profiler_enabled():
        return False
    for tensor in (x, *others):
        if tensor is None:
            continue
        if (type(tensor) is not Tensor and type(tensor) is not nn.Parameter) or tensor.is_neg():
            return False
    return True


def check_implementation(operation: str, impl: str, x: Tensor, native: bool = False) -> None:
    """Raise ValueError for an `impl` that this operation does not have, or that cannot run here.

    `native`: the native library has this operation.
    """
    known = (*IMPLEMENTATIONS, "native") if native else IMPLEMENTATIONS
    if impl not in known:
        raise ValueError(f"{operation}: impl must be {', '.join(known[:-1])} or {known[-1]}, found {impl!r}")
    if impl in ("auto", "reference") or torch.compiler.is_compiling():
        return
    if impl == "native":
        reason = native_library.refusal(x)
        if reason is not None:
            raise ValueError(f"{operation}: impl='native': {reason}")
        return
    if not triton_is_installed():
        raise ValueError(f"{operation}: impl='triton': Triton is not installed")
    if not x.is_cuda:
        from triton import knobs

        if not knobs.runtime.interpret:
            raise ValueError(
                f"{operation}: impl='triton' on a {x.device.type} tensor runs only in the interpreter: "
                "set TRITON_INTERPRET=1"
            )


@functools.cache
def triton_is_installed() -> bool:
    """Whether `import triton` would find it. Nothing is imported."""
    from importlib.util import find_spec

    return find_spec("triton") is not None


def _takes_kernels(impl: str, x: Tensor) -> bool:
    return impl == "triton" or (impl == "auto" and _is_gpu(x) and not _given_up and triton_is_installed())


def _is_gpu(x: Tensor) -> bool:
    return x.is_cuda


def _give_up(operation: str, error: Exception) -> None:
    global _given_up
    _given_up = True
    warnings.warn(
        f"vologan_kernels: Triton cannot compile {operation} here, the plain PyTorch form is used instead "
        f"({type(error).__name__}: {(str(error).strip().splitlines() or [''])[-1]}). Triton needs a C compiler, the "
        "headers of Python, libcuda and a cache folder ($TRITON_CACHE_DIR) that it can write to",
        stacklevel=2,
    )
