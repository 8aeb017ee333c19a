"""Things that a launch needs to know of a device, or to have on it: multiprocessors, constants, and counters."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from vologan_kernels.graph_memory import kept
from vologan_kernels.launch import MULTIPROCESSORS


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """The device's count of multiprocessors. On a device that is no GPU, the kernels are cut as for an H200."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else MULTIPROCESSORS


def constants(values: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Numbers as a tensor on `device`. It is kept for later steps, because a copy to the device makes the host wait."""
    return kept(_constants(values, device, dtype))


@functools.lru_cache(maxsize=256)
def _constants(values: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.tensor(values, dtype=dtype, device=device)


def numbers(values: Sequence[float], like: Tensor) -> Tensor:
    """Numbers as a tensor of the dtype and device of `like`. Nothing is kept, so code that is traced may call it.

    A GPU writes them itself, one after the other, because a copy to it makes the host wait, and cannot be captured.
    """
    if not like.is_cuda or not values:
        return like.new_tensor(values)
    return torch.stack([like.new_full((), value) for value in values])


_counters: dict[tuple[torch.device, int], Tensor] = {}


def arrivals(device: torch.device, count: int = 1) -> Tensor:
    """At least `count` counters that are 0. With them, the programs of one launch find out which of them is the last.

    A launch sets its counters back to 0. Launches on one stream follow each other and share counters. A captured graph
    may run at the same time as other launches, so each launch in it gets new counters.
    """
    if device.type != "cuda" or torch.cuda.is_current_stream_capturing():
        return torch.zeros(count, dtype=torch.int32, device=device)
    key = device, torch.cuda.current_stream(device).cuda_stream
    if key not in _counters or _counters[key].numel() < count:
        _counters[key] = torch.zeros(count, dtype=torch.int32, device=device)
    return _counters[key]
