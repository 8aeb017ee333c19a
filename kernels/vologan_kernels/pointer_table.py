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

Rows = tuple[tuple[int, ...], ...]


class PointerTable:
    """A table that is sent to the device only when its contents change. Parameters stay where they are; gradients move.

    The copy is asynchronous and comes from pinned memory, so the host never waits. A CUDA graph that is being captured
    gets a table of its own. That table lives as long as this object, because the graph sends it again at every replay.
    """

    def __init__(self) -> None:
        self._rows: Rows = ()
        self._table: Tensor | None = None
        self._spare: Tensor | None = None
        self._captured: list[tuple[Tensor, Tensor]] = []

    def __call__(self, rows: Sequence[tuple[int, ...]], device: torch.device) -> Tensor:
        """`rows` as an int64 tensor (rows, columns) on `device`."""
        capturing = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
        if not capturing and self._table is not None and self._rows == tuple(rows) and self._table.device == device:
            return self._table
        host = torch.tensor(rows, dtype=torch.int64)
        if device.type == "cuda":
            host = self._pinned(host.shape).copy_(host)
        table = host.to(device, non_blocking=True)
        if capturing:
            self._captured.append((host, table))
            return table
        if device.type == "cuda":
            self._spare = torch.empty_like(host, pin_memory=True)  # for a capture, which must not allocate it
        self._rows, self._table = tuple(rows), table
        return table

    def _pinned(self, shape: torch.Size) -> Tensor:
        spare, self._spare = self._spare, None
        return (
            spare
            if spare is not None and spare.shape == shape
            else torch.empty(shape, dtype=torch.int64, pin_memory=True)
        )


class Tables(NamedTuple):
    """The two tables of a kernel, which are kept from step to step."""

    rows: PointerTable
    pieces: PointerTable


def pieces(sizes: Sequence[int], length: int) -> list[tuple[int, int]]:
    """(index, first element) of the pieces that cover things of `sizes`; a piece has at most `length` elements."""
    return [(index, first) for index, size in enumerate(sizes) for first in range(0, size, length)]
