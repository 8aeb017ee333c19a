"""Where tensors lie: in memory, and many of them in a table for kernels that visit all of a model in one launch.

A kernel that does not care for the order of elements can take a dense tensor as a row of numbers, whatever the order of
its dimensions, if all that it reads beside lie alike.

A kernel argument is one tensor; a model has hundreds. Such a kernel gets two int64 tables: `rows`, a row of addresses
and numbers for each tensor, and `pieces`, (row, first element) for each program. It loads its row, makes pointers of
the addresses, and works on its piece.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def is_dense(shape: Sequence[int], stride: Sequence[int]) -> bool:
    """Whether a tensor's elements fill one piece of memory, in whatever order of its dimensions."""
    dense = 1
    for step, size in sorted(zip(stride, shape, strict=True)):
        if size != 1 and step != dense:
            return False
        dense *= size
    return True


def lying_as(tensor: Tensor, stride: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
    """`tensor` itself where it has these strides (and `dtype`), else a copy that has."""
    sizes = zip(tensor.shape, stride, tensor.stride(), strict=True)
    if (dtype is None or tensor.dtype == dtype) and all(size == 1 or ours == theirs for size, ours, theirs in sizes):
        return tensor
    copy = torch.empty_strided(tensor.shape, stride, dtype=dtype or tensor.dtype, device=tensor.device)
    return copy.copy_(tensor)


Rows = tuple[tuple[int, ...], ...]


class PointerTable:
    """A table that is sent to the device when its contents change: parameters stay where they are, gradients move.

    The copy is asynchronous, from pinned memory: the host never waits. A CUDA graph that is being captured gets a table
    of its own, kept for as long as this object, because the graph sends it anew at every replay.
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
            self._spare = torch.empty_like(host, pin_memory=True)  # for a capture, which may allocate none
        self._rows, self._table = tuple(rows), table
        return table

    def _pinned(self, shape: torch.Size) -> Tensor:
        spare, self._spare = self._spare, None
        return (
            spare
            if spare is not None and spare.shape == shape
            else torch.empty(shape, dtype=torch.int64, pin_memory=True)
        )


def pieces(sizes: Sequence[int], length: int) -> list[tuple[int, int]]:
    """(index, first) of pieces of at most `length` that cover things of `sizes`."""
    return [(index, first) for index, size in enumerate(sizes) for first in range(0, size, length)]
