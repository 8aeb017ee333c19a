"""How Triton kernels read and write tensors; all operations share it.

An image is a `layouts.View`. A tile of it is a block of values (positions, channels). Offsets are int64, so that
tensors may have more than 2³¹ elements.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

TRITON_TYPES = {
    torch.float32: tl.float32,
    torch.float64: tl.float64,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}


@triton.jit
def tile_offsets(view, sample, position, channel):
    """Where the elements of a tile lie, counted from the pointer of the view."""
    start = sample * view.stride_n + position[:, None].to(tl.int64) * view.stride_p
    return start + channel[None, :].to(tl.int64) * view.stride_c


@triton.jit
def load_tile(view, sample, position, channel, mask, ACC: tl.constexpr):
    """A tile (positions, channels) as ACC. It is 0 outside the mask."""
    offset = tile_offsets(view, sample, position, channel)
    return tl.load(view.pointer + offset, mask=mask, other=0.0).to(ACC)


@triton.jit
def store_tile(view, sample, position, channel, mask, value):
    """Write a tile (positions, channels) in the type of the tensor."""
    offset = tile_offsets(view, sample, position, channel)
    tl.store(view.pointer + offset, value.to(view.pointer.dtype.element_ty), mask=mask)


@triton.jit
def load_flat(pointer, at, mask, ACC: tl.constexpr):
    """Elements of a dense tensor as ACC, in the order in which they lie. They are 0 outside the mask."""
    return tl.load(pointer + at, mask=mask, other=0.0).to(ACC)


@triton.jit
def pick(tensors, i):
    """The i-th of a tuple of pointers."""
    picked = tensors[0]
    for k in tl.static_range(1, len(tensors)):
        if i == k:
            picked = tensors[k]
    return picked
