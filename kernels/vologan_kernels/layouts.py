"""Memory layouts: where the elements of a tensor lie.

PyTorch describes a layout by strides. A stride is the distance in memory, in elements, from one index to the next.
Images (N, C, H, W) come in two layouts:

- contiguous (NCHW): the positions of one channel lie side by side;
- channels_last (NHWC): the channels of one position lie side by side.

The kernels address an image by sample, position and channel, where position = row · W + column, with one stride for
each. So contiguous images, channels_last images, and channel slices of either need no copy.

Kernels that do not care for the order of elements read a dense tensor as one row of numbers. The order of its
dimensions does not matter then, as long as all tensors that are read together have the same strides.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

# ---- images (N, C, H, W) --------------------------------------------------------------------------------------------


def is_channels_last(image: Tensor) -> bool:
    """Whether the channels of `image` lie side by side in memory, and its positions do not."""
    return not image.is_contiguous() and image.stride(1) == 1


def output_layout(image: Tensor) -> torch.memory_format:
    """The memory format of results that are made from `image`: channels_last if the image is, else contiguous."""
    return torch.channels_last if is_channels_last(image) else torch.contiguous_format


class View(NamedTuple):
    """An image (N, C, H, W) as a kernel addresses it: where it starts, and its three strides in elements.

    Triton takes it as one argument. It specialises the pointer and each stride as if they were arguments of their own.
    """

    pointer: Any  # the tensor; inside a kernel, the pointer to its first element
    stride_n: int
    stride_p: int
    stride_c: int


def view_of(image: Tensor) -> View:
    """The view of an image whose rows follow each other at a fixed distance, as `addressable` makes sure."""
    return View(image, image.stride(0), _position_stride(image), image.stride(1))


def addressable(image: Tensor, layout: torch.memory_format) -> Tensor:
    """`image` itself if a kernel for `layout` can address it at full speed, else a copy in that layout.

    The rows must follow each other at a fixed distance, and the fastest dimension must lie densely. An image that is
    one number in all places, such as the gradient of a sum, needs no copy either.
    """
    _, c, h, w = image.shape
    _, stride_c, stride_h, stride_w = image.stride()
    rows_follow = h == 1 or w == 1 or stride_h == w * stride_w
    size, stride = (c, stride_c) if layout == torch.channels_last else (h * w, _position_stride(image))
    constant = image.stride() == (0, 0, 0, 0)
    return image if rows_follow and (size == 1 or stride == 1 or constant) else image.contiguous(memory_format=layout)


def view_like(example: Tensor | None, layout: torch.memory_format) -> Callable[[Any], View | None]:
    """A function that views images which lie as `example`, or copies of them if a kernel for `layout` needs them."""
    if example is None:
        return lambda image: None
    read = addressable(example, layout)
    _, n, p, c = view_of(read)
    make = tuple.__new__  # as View(…) does, in half the time
    if read is example:
        return lambda image: make(View, (image, n, p, c))
    return lambda image: make(View, (addressable(image, layout), n, p, c))


def maker(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
    layout: torch.memory_format = torch.contiguous_format,
) -> Callable[[], Tensor]:
    """A function that makes new tensors, as `torch.empty` does. With strides, PyTorch needs two thirds of the time."""
    strides = torch.empty(shape, device="meta", memory_format=layout).stride()
    return functools.partial(torch.empty_strided, shape, strides, dtype=dtype, device=device)


def _position_stride(image: Tensor) -> int:
    return image.stride(3) if image.shape[3] > 1 else image.stride(2)


# ---- any tensor -----------------------------------------------------------------------------------------------------


def is_dense(shape: Sequence[int], stride: Sequence[int]) -> bool:
    """Whether the elements fill one piece of memory without gaps, in any order of the dimensions."""
    if 0 in shape:
        return True
    dense = 1
    for step, size in sorted(zip(stride, shape, strict=True)):
        if size != 1 and step != dense:
            return False
        dense *= size
    return True


def lying_as(tensor: Tensor, stride: tuple[int, ...], dtype: torch.dtype | None = None) -> Tensor:
    """`tensor` itself if it has these strides and, unless None, this `dtype`; else a copy that has them.

    A negated view, such as `z.conj().imag`, is copied too: its memory has the other sign.
    """
    if (dtype is None or tensor.dtype == dtype) and not tensor.is_neg():
        lies = tensor.stride()
        if lies == stride:
            return tensor
        if all(size == 1 or ours == theirs for size, ours, theirs in zip(tensor.shape, stride, lies, strict=True)):
            return tensor
    copy = torch.empty_strided(tensor.shape, stride, dtype=dtype or tensor.dtype, device=tensor.device)
    return copy.copy_(tensor)
