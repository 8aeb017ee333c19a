"""Memory of the host that a GPU reads, so that the host never waits in a batch.

A copy from ordinary memory makes the host wait for everything that the GPU has to do. A copy from pinned memory does
not. It runs later, in the order of the current stream. torch keeps freed pinned memory for the next batches, and gives
it to nobody before the copies from it are over. So a loader may drop what it has sent, but must not write to it.

torch does not know of kernels that read pinned memory themselves. `Reads` does.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def host_memory(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return new memory of the host for what will be sent to `device`: pinned memory for a GPU."""
    return torch.empty(tuple(shape), dtype=dtype, device="cpu", pin_memory=device.type == "cuda")


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor of the host on `device`. The host does not wait, and must not write to the tensor any more."""
    if device.type == "cuda" and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


class Reads:
    """Kernels on `device` that read memory which this process will free."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._last: dict[int, torch.cuda.Event] = {}  # by stream: each ends its kernels in order

    def add(self) -> None:
        """Count the kernels that were launched in the current stream."""
        stream = torch.cuda.current_stream(self._device)
        if stream.cuda_stream not in self._last:
            self._last[stream.cuda_stream] = torch.cuda.Event()
        self._last[stream.cuda_stream].record(stream)

    def wait(self) -> None:
        """Wait until these kernels have ended."""
        for event in self._last.values():
            event.synchronize()
        self._last.clear()
