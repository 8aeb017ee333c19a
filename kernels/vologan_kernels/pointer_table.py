"""Where many tensors lie, as a table in device memory: for kernels that visit all tensors of a model in one launch.

A kernel argument is one tensor; a model has hundreds. Such a kernel gets two int64 tables: `rows`, a row of addresses
and numbers for each tensor, and `pieces`, (row, first element) for each program. It loads its row, makes pointers of
the addresses, and works on its piece.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Rows = tuple[tuple[int, ...], ...]


class PointerTable:
    """A table that is sent to the device when its contents change: parameters stay where they are, gradients move.

    The copy is asynchronous, from pinned memory: the host never waits. A table that a CUDA graph was captured with is
    kept for as long as this object, because the graph reads it again at every replay.
    """

    def __init__(self) -> None:
        self._rows: Rows = ()
        self._table: Tensor | None = None
        self._captured: list[tuple[Tensor, Tensor]] = []

    def __call__(self, rows: Sequence[tuple[int, ...]], device: torch.device) -> Tensor:
        """`rows` as an int64 tensor (rows, columns) on `device`."""
        if self._table is None or self._rows != tuple(rows) or self._table.device != device:
            self._rows = tuple(rows)
            host = torch.tensor(self._rows, dtype=torch.int64)
            if device.type == "cuda":
                host = host.pin_memory()
            self._table = host.to(device, non_blocking=True)
            if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
                self._captured.append((host, self._table))
        return self._table


def pieces(sizes: Sequence[int], length: int) -> list[tuple[int, int]]:
    """(index, first) of pieces of at most `length` that cover things of `sizes`."""
    return [(index, first) for index, size in enumerate(sizes) for first in range(0, size, length)]
