"""A stand-in for a GPU on machines without one: it does later what it is told, and finds memory that is used wrongly.

Inside `StandInGpu`, tensors "on cuda" are tensors of the CPU that say so. A copy that the host does not wait for, and a
kernel, run when a later operation on the GPU needs them, or in `finish`. `faults` lists

- copies for which the host waits,
- memory of the host that changed before a copy or a kernel had read it,
- memory of the host that was freed before a kernel had read it. (If only copies read it, torch gives pinned memory to
  nobody before they are over. It knows nothing of kernels.)
- pinned memory that was taken while a graph was captured.

It sees what its own thread does, so `Executor` takes the place of thread pools.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

CUDA = torch.device("cuda", 0)
_WAITS = {"__bool__", "__float__", "__index__", "__int__", "equal", "item", "new_tensor", "nonzero", "numpy", "tolist"}
"""Operations on a GPU's tensor for which the host waits."""

_VIEWS = {"permute", "view"}


class StandInGpu(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.faults: list[str] = []
        self.capturing = False
        """Whether a graph is being captured. The test sets it."""
        self._queue: list[tuple[Callable[[], object], Sequence[Callable[[], Tensor | None]], list[Tensor]]] = []
        self._on_gpu: Any = WeakIdKeyDictionary()
        self._pinned: Any = WeakIdKeyDictionary()

    def launch(self, kernel: Callable[..., object], *reads: Tensor) -> None:
        """Launch `kernel(*reads)`, which does not keep what it reads.

        Memory of the GPU may be freed before: its next owner's work comes behind this kernel.
        """
        strong = {i: tensor for i, tensor in enumerate(reads) if self.is_on_gpu(tensor)}
        weak = {i: weakref.ref(tensor) for i, tensor in enumerate(reads) if i not in strong}
        before = [reads[i].clone() for i in weak]
        self._queue.append(
            (
                lambda: kernel(*(strong[i] if i in strong else weak[i]() for i in range(len(strong) + len(weak)))),
                list(weak.values()),
                before,
            )
        )

    def finish(self) -> None:
        """Do everything that the GPU was told."""
        with torch._C.DisableTorchFunction():
            while self._queue:
                work, reads, before = self._queue.pop(0)
                now = [read() for read in reads]
                if any(tensor is None for tensor in now):
                    self.faults.append("memory was freed before it was read")
                elif any(tensor.ne(old).any() for tensor, old in zip(now, before, strict=True)):
                    self.faults.append("memory was changed before it was read")
                else:
                    work()

    def values(self, tensor: Tensor) -> Any:
        """Return what `tolist` returns, once everything is done."""
        self.finish()
        with torch._C.DisableTorchFunction():
            return tensor.tolist()

    def is_on_gpu(self, tensor: object) -> bool:
        return isinstance(tensor, Tensor) and tensor in self._on_gpu

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options, name = dict(kwargs or {}), func.__name__
        first = args[0] if args else None
        if name == "__get__" and self.is_on_gpu(first) and func.__self__.__name__ in ("device", "is_cuda"):
            return CUDA if func.__self__.__name__ == "device" else True
        if name == "is_pinned":
            return self._is_pinned(first)
        if name == "pin_memory":
            return self._pin(first.clone())
        if name in ("to", "cuda", "cpu"):
            return self._to(name, *args, **options)
        if name == "copy_":
            return self._copy(*args, **options)
        on_gpu = any(map(self.is_on_gpu, torch.utils._pytree.tree_leaves((args, options))))
        if (device := options.pop("device", None)) is not None:
            on_gpu = torch.device(device).type == "cuda"
            if on_gpu and name in ("tensor", "as_tensor"):
                self.faults.append(f"the host waits for torch.{name}")
        if on_gpu and name in _WAITS:
            self.faults.append(f"the host waits for {name}")
        if on_gpu and name not in _VIEWS:
            self.finish()  # this operation comes behind the work before it
        pinned = options.pop("pin_memory", False)
        result = func(*args, **options)
        if pinned:
            return self._pin(result)
        return self._mark(result) if on_gpu else result

    def _mark(self, result: Any) -> Any:
        if isinstance(result, Tensor):
            self._on_gpu[result] = True
        elif isinstance(result, (tuple, list)):
            for part in result:
                self._mark(part)
        return result

    def _is_pinned(self, tensor: Tensor) -> bool:
        return (tensor if tensor._base is None else tensor._base) in self._pinned

    def _pin(self, tensor: Tensor) -> Tensor:
        if self.capturing:
            self.faults.append("pinned memory was taken in a capture")
        self._pinned[tensor] = True
        return tensor

    def _copy(self, to: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
        from_host, to_host = not self.is_on_gpu(source), not self.is_on_gpu(to)
        if from_host and to_host:
            return to.copy_(source)
        if from_host != to_host and not (non_blocking and self._is_pinned(source if from_host else to)):
            self.faults.append("the host waits for a copy")
        before = [source.clone()] if from_host else []
        self._queue.append((lambda: to.copy_(source), [lambda: source] * from_host, before))
        return to

    def _to(self, name: str, tensor: Tensor, *rest: Any, non_blocking: bool = False, **options: Any) -> Tensor:
        places = [p for p in (options.pop("device", None), *rest) if isinstance(p, (str, torch.device, Tensor))]
        rest = tuple(p for p in rest if not isinstance(p, (str, torch.device, Tensor)))
        there = self.is_on_gpu(tensor)
        if places and isinstance(place := places[0], Tensor):
            there, rest = self.is_on_gpu(place), (place.dtype, *rest)
        elif name != "to" or places:
            there = torch.device(places[0] if places else name).type == "cuda"
        if there and self.is_on_gpu(tensor):
            self.finish()
        changed = tensor.to(*rest, **options) if rest or options else tensor
        if there == self.is_on_gpu(tensor):
            return self._mark(changed) if there else changed
        if self._is_pinned(tensor) and changed is not tensor:
            self._pinned[changed] = True
        made = torch.empty_like(changed)
        return self._copy(self._mark(made) if there else made, changed, non_blocking)


class Executor:
    """A thread pool whose only thread is the caller's."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(function(*arguments))
        return future

    def map(self, function: Callable[..., Any], *iterables: Any) -> Iterator[Any]:
        return map(function, *iterables)

    def shutdown(self, **_: Any) -> None:
        pass

    def __enter__(self) -> Executor:
        return self

    def __exit__(self, *_: object) -> None:
        pass
