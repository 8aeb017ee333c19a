"""What the Triton kernels and their launches share.

A tensor (N, C, H, W) is addressed as (sample, position, channel) with a stride each, where position = row · W + column:
contiguous, channels_last and channel slices of either need no copy. A tile is (positions, channels); offsets are int64.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from vologan_kernels.launch import is_channels_last


@triton.jit
def load_tile(pointer, sample, position, channel, stride_n, stride_p, stride_c, mask, ACC: tl.constexpr):
    """A tile (positions, channels) of a tensor as ACC; 0 outside the mask."""
    offset = sample * stride_n + position[:, None].to(tl.int64) * stride_p + channel[None, :].to(tl.int64) * stride_c
    return tl.load(pointer + offset, mask=mask, other=0.0).to(ACC)


@triton.jit
def store_tile(pointer, sample, position, channel, stride_n, stride_p, stride_c, mask, value):
    offset = sample * stride_n + position[:, None].to(tl.int64) * stride_p + channel[None, :].to(tl.int64) * stride_c
    tl.store(pointer + offset, value.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def load_flat(pointer, at, mask, ACC: tl.constexpr):
    """Elements of a dense tensor as ACC, in the order in which they lie; 0 outside the mask."""
    return tl.load(pointer + at, mask=mask, other=0.0).to(ACC)


@triton.jit
def pick(tensors, i):
    """The i-th of a tuple of pointers."""
    picked = tensors[0]
    for k in tl.static_range(1, len(tensors)):
        if i == k:
            picked = tensors[k]
    return picked


TRITON_TYPES = {
    torch.float32: tl.float32,
    torch.float64: tl.float64,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}


def accumulator_of(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def addressable(tensor: Tensor, layout: torch.memory_format) -> Tensor:
    """`tensor` itself where rows follow each other at a fixed distance and its fast axis lies densely, else a copy."""
    _, c, h, w = tensor.shape
    _, stride_c, stride_h, stride_w = tensor.stride()
    rows_follow = h == 1 or w == 1 or stride_h == w * stride_w
    size, stride = (c, stride_c) if is_channels_last(layout) else (h * w, strides_of(tensor)[1])
    constant = tensor.stride() == (0, 0, 0, 0)  # the gradient of a sum
    return tensor if rows_follow and (size == 1 or stride == 1 or constant) else tensor.contiguous(memory_format=layout)


def strides_of(tensor: Tensor | None) -> tuple[int, int, int]:
    """(sample, position, channel)"""
    if tensor is None:
        return 0, 0, 0
    return tensor.stride(0), tensor.stride(3) if tensor.shape[3] > 1 else tensor.stride(2), tensor.stride(1)


def on_device_of(tensor: Tensor) -> Any:
    """Kernels are launched on the current device: make it the tensor's."""
    return torch.cuda.device_of(tensor)


@functools.lru_cache(maxsize=256)
def constants(values: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Numbers on the device, kept: they are the same in every step, and sending them makes the host wait."""
    return torch.tensor(values, dtype=dtype, device=device)


_counters: dict[tuple[torch.device, int], Tensor] = {}


def arrivals(device: torch.device) -> Tensor:
    """A counter that is 0, for the programs of one launch to find which of them is the last; that one sets it to 0.

    Launches on one stream follow each other and share a counter. A captured graph may run beside anything and has its
    own.
    """
    if device.type != "cuda" or torch.cuda.is_current_stream_capturing():
        return torch.zeros((), dtype=torch.int32, device=device)
    key = device, torch.cuda.current_stream(device).cuda_stream
    if key not in _counters:
        _counters[key] = torch.zeros((), dtype=torch.int32, device=device)
    return _counters[key]
