"""Memory that a CUDA graph reads at every replay. It must live as long as the graph.

    memory = GraphMemory()
    with memory.counted():            # around the usual runs of a step, before its capture
        step()
    with memory.held(device), torch.cuda.graph(graph):
        step()
    graph.replay()                    # as long as `memory` is kept

A kernel gets the addresses of all tensors in a table (`pointer_table.py`). In a capture, `held` gives each table a
piece of memory that it has taken before the capture, and sends all tables at its end. So neither the capture nor a
replay copies anything from the host. `held` also keeps the tensors that exist already and that the graph reads.

A capture without `held` works, too. Then the owners of the tables keep the memory: see `PointerTable`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

_current: GraphMemory | None = None
"""Not a variable of a thread or of a context: autograd runs a backward in threads of its own."""
_of_nobody: dict[int, Tensor] = {}
"""Constants in graphs that were captured without `held`."""


class GraphMemory:
    """The memory of one graph. `counted` and `held` may be used again, for a graph that replaces the former one."""

    def __init__(self) -> None:
        self._needed = 0
        self._used = 0
        self._host: Tensor | None = None
        self._tables: Tensor | None = None
        self._kept: dict[int, Tensor] = {}

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Around a run that is not captured: count the numbers in its tables. The largest run counts."""
        before, self._needed, self._used = self._needed, 0, 0
        try:
            with self._as_current():
                yield
        finally:
            self._needed = max(self._needed, before)

    @contextmanager
    def held(self, device: torch.device) -> Iterator[None]:
        """Around the capture on `device`. The current stream, to which it returns, is the one of the replays."""
        pinned = device.type == "cuda"
        self._used, self._kept = 0, {}
        self._host = torch.empty(self._needed, dtype=torch.int64, device="cpu", pin_memory=pinned)
        # Memory of this stream: when it is freed, the next owner's work comes behind the last replay.
        self._tables = torch.empty(self._needed, dtype=torch.int64, device=device)
        with self._as_current():
            yield
        self._tables.copy_(self._host, non_blocking=True)
        self._host = None  # torch gives pinned memory to nobody before the copies from it are over

    def count(self, numbers: int) -> None:
        """Count a table of so many numbers, which a run that is not captured uses."""
        self._needed += _aligned(numbers)

    def table(self, rows: Tensor) -> Tensor | None:
        """`rows` (rows, columns) on the device, from the replays on. None if there is not enough memory left."""
        end = self._used + rows.numel()
        if self._host is None or self._tables is None or end > len(self._host):
            return None
        place = slice(self._used, end)
        self._host[place] = rows.flatten()
        self._used += _aligned(rows.numel())
        return self._tables[place].view(rows.shape)

    def keep(self, tensor: Tensor) -> None:
        """Keep a tensor that the graph reads."""
        self._kept[id(tensor)] = tensor

    @contextmanager
    def _as_current(self) -> Iterator[None]:
        global _current
        before, _current = _current, self
        try:
            yield
        finally:
            _current = before


def _aligned(numbers: int) -> int:
    """Numbers of int64 up to the next address that is a multiple of 16 bytes.

    Triton compiles a kernel for such addresses, and another one for others. A table outside of a graph has such an
    address, so a capture needs no other kernel.
    """
    return numbers + numbers % 2


def current() -> GraphMemory | None:
    """The memory of the run or of the capture that is in progress. None if it has none."""
    return _current


def kept(constant: Tensor) -> Tensor:
    """Return the constant. If a graph is being captured, the constant lives as long as the graph.

    Without a `GraphMemory`, it lives as long as the process, because nothing tells when the graph is gone.
    """
    if constant.is_cuda and torch.cuda.is_current_stream_capturing():
        (_of_nobody if _current is None else _current._kept)[id(constant)] = constant
    return constant
