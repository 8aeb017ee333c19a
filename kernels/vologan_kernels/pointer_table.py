"""Tables of tensors, for kernels that visit all tensors of a model in one launch.

A kernel argument is one tensor, and a model has hundreds. Such a kernel gets two int64 tables instead. `rows` has a row
of addresses and numbers for each tensor. `pieces` has (row, first element) for each program. A program loads its row,
turns the addresses into pointers, and works on its piece.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from vologan_kernels import graph_memory

Rows = tuple[tuple[int, ...], ...]


class PointerTable:
    """A table that is sent to the device only when its contents change. Parameters stay where they are; gradients move.

    The copy is asynchronous and comes from pinned memory, so the host never waits. A CUDA graph that is being captured
    gets a table that lives as long as the graph, from its `GraphMemory`.

    A capture without a `GraphMemory` copies the table at every replay. Its pinned memory then lives as long as this
    object. A call before the capture has taken it, if its table had the same shape. If a capture has several tables of
    one shape, the others take theirs in the capture, which needs `capture_error_mode="relaxed"`.
    """

    def __init__(self) -> None:
        self._rows: Rows = ()
        self._table: Tensor | None = None
        self._spares: dict[torch.Size, Tensor] = {}
        self._captured: list[Tensor] = []

    def __call__(self, rows: Sequence[tuple[int, ...]], device: torch.device) -> Tensor:
        """`rows` as an int64 tensor (rows, columns) on `device`."""
        rows, memory = tuple(rows), graph_memory.current()
        capturing = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
        if memory is not None and not capturing:
            memory.count(sum(map(len, rows)))
        if self._table is not None and self._rows == rows and self._table.device == device:
            if capturing:
                self._keep(self._table)
            elif device.type == "cuda" and memory is None:
                self._prepare(self._table.shape)
            return self._table
        host = torch.tensor(rows, dtype=torch.int64, device="cpu")
        if capturing:
            return self._in_graph(host, device)
        if device.type == "cuda":
            if memory is None:
                self._prepare(host.shape)
            host = host.pin_memory()  # torch gives it to nobody before the copy is over
        self._rows, self._table = rows, host.to(device, non_blocking=True)
        return self._table

    def _in_graph(self, host: Tensor, device: torch.device) -> Tensor:
        memory = graph_memory.current()
        if memory is not None and (table := memory.table(host)) is not None:
            return table
        spare = self._spares.pop(host.shape, None)
        pinned = host.pin_memory() if spare is None else spare.copy_(host)
        self._keep(pinned)
        return pinned.to(device, non_blocking=True)  # its memory belongs to the graph, as all that a capture makes

    def _keep(self, tensor: Tensor) -> None:
        """Keep what the graph that is being captured reads at its replays."""
        if (memory := graph_memory.current()) is not None:
            memory.keep(tensor)
        elif not any(tensor is other for other in self._captured):
            self._captured.append(tensor)

    def _prepare(self, shape: torch.Size) -> None:
        """Take the pinned memory for a capture, which must not take it."""
        if shape not in self._spares:
            self._spares[shape] = torch.empty(shape, dtype=torch.int64, device="cpu", pin_memory=True)


class Tables(NamedTuple):
    """The two tables of a kernel, which are kept from step to step."""

    rows: PointerTable
    pieces: PointerTable


def pieces(sizes: Sequence[int], length: int) -> list[tuple[int, int]]:
    """(index, first element) of the pieces that cover things of `sizes`; a piece has at most `length` elements."""
    return [(index, first) for index, size in enumerate(sizes) for first in range(0, size, length)]
