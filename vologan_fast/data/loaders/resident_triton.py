"""The Triton kernel that makes a batch from kept images in one launch. `resident.pack_plain` is its definition.

Each program makes BLOCK pixels of one image. The images may lie in GPU memory or in pinned host memory. The GPU reads
pinned memory directly. So 5 or 7 bytes per pixel cross the bus, instead of the 16 bytes per pixel of the batch.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 512
WARPS = 4


@triton.jit
def pack_kernel(
    color_ptr,  # uint8 (n, H, W, 3)
    depth_ptr,  # (n, H, W): uint16 codes, or normalised float32
    levels_ptr,  # float32 (65536,) of the codes, or None
    draws_ptr,  # int32 (N, 4): index, flip, top, left
    batch_ptr,  # (N, H, W, 4)
    height,
    width,
    BLOCK: tl.constexpr,
):
    image = tl.program_id(1)
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row, column = pixel // width, pixel % width
    index = tl.load(draws_ptr + 4 * image).to(tl.int64)
    flip = tl.load(draws_ptr + 4 * image + 1)
    from_row = row + tl.load(draws_ptr + 4 * image + 2)
    from_column = column + tl.load(draws_ptr + 4 * image + 3)
    inside = (from_row < height) & (from_column < width)
    from_column = tl.where(flip != 0, width - 1 - from_column, from_column)
    source = index * height * width + from_row * width + from_column
    depth = tl.load(depth_ptr + source, mask=inside, other=0)
    if levels_ptr is not None:
        depth = tl.load(levels_ptr + depth.to(tl.int32), mask=inside, other=0.0)
    seen = inside & (depth != -1.0)
    channel = tl.arange(0, 4)[None, :]
    of_color = seen[:, None] & (channel < 3)
    color = tl.load(color_ptr + 3 * source[:, None] + channel, mask=of_color, other=0)
    level = tl.div_rn(color.to(tl.float32), 255.0)
    value = tl.where(channel < 3, level, tl.where(seen, depth, 0.0)[:, None])
    target = (image.to(tl.int64) * height * width + pixel)[:, None] * 4 + channel
    tl.store(batch_ptr + target, value.to(batch_ptr.dtype.element_ty), mask=(pixel < height * width)[:, None])


def pack(color: Tensor, depth: Tensor, levels: Tensor | None, draws: Tensor, batch: Tensor) -> None:
    """Fill `batch`, (N, H, W, 4) of any float type on the GPU. `pack_kernel` lists the shapes of the other tensors."""
    count, height, width = batch.shape[:3]
    grid: Any = (triton.cdiv(height * width, BLOCK), count)
    with torch.cuda.device_of(batch):
        pack_kernel[grid](color, depth, levels, draws, batch, height, width, BLOCK=BLOCK, num_warps=WARPS)
