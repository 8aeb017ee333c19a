"""The instance norm on a CPU, by the native library (`native_library.py`).

The library gets one structure of pointers, sizes and strides (`csrc/norm.h`), in which every field has eight bytes.
"""

from __future__ import annotations

import functools
import itertools
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vologan_kernels import native_library
from vologan_kernels.layouts import addressable, output_layout, view_of
from vologan_kernels.precision import refuse_complex

# ---- structures of csrc/norm.h --------------------------------------------------------------------------------------

_ACTIVATIONS = {"identity": 0, "relu": 1, "leaky_relu": 2, "prelu": 3, "silu": 4, "gelu": 5, "elu": 6, "tanh": 7}
_NORM, _VIEW = "9q3d5Q", "Q3q"
_FORWARD = struct.Struct("=" + _NORM + 3 * _VIEW)
_BACKWARD = struct.Struct("=" + _NORM + "q" + 5 * _VIEW + "3Q")
_FORWARD_ADDRESSES, _BACKWARD_ADDRESSES = struct.Struct("=8Q"), struct.Struct("=13Q")
_NO_ADDRESSES = 0, 0, 0, 0, 0
_NO_IMAGE = 0, 0, 0, 0

_Lies = tuple[torch.Size, tuple[int, ...]]
"""Shape and strides of an image."""


class _Plan(NamedTuple):
    """What all calls share that differ in addresses only. A call makes its results with these shapes and strides."""

    layout: torch.memory_format
    readable: bool
    """Whether the library can address the images as they lie. If not, they are copied first."""
    fields: bytes
    """The structure of the call."""
    shape: tuple[int, int, int, int]
    stride: tuple[int, ...]
    accumulator: torch.dtype


def _lies(image: Tensor) -> _Lies:
    return image.shape, image.stride()


def _image(lies: _Lies, layout: torch.memory_format) -> tuple[int, int, int, int] | None:
    """The fields of an image: no address yet, and the strides of sample, position and channel. None: it needs a copy.

    An image that is one number in all places needs one, too.
    """
    example = torch.empty_strided(*lies, device="meta")
    (_, c, h, w), dense = lies[0], example.is_contiguous(memory_format=layout)
    if dense:  # strides of dimensions of size 1 may be anything
        return (0, c * h * w, 1, h * w) if layout == torch.contiguous_format else (0, c * h * w, c, 1)
    if not any(lies[1]) or addressable(example, layout) is not example:
        return None
    _, n, p, channel = view_of(example)
    if layout == torch.contiguous_format:
        return 0, n, (1 if h * w == 1 else p), channel
    return 0, n, p, (1 if c == 1 else channel)


def _plan(
    structure: struct.Struct,
    like: _Lies,
    made: tuple[int, int, int, int],
    dtype: torch.dtype,
    numbers: tuple[Any, ...],
    images: Sequence[_Lies | None],
    results: Sequence[bool],
    more: tuple[int, ...] = (),
    last: tuple[int, ...] = (),
) -> _Plan:
    """The plan of a call that reads `images` and makes `results` of shape `made`, in the layout of `like`.

    `numbers` are the fields of VologanNorm from n to min_scale. `more` and `last` stand before and behind the images.
    """
    layout = output_layout(torch.empty_strided(*like, device="meta"))
    stride = torch.empty(made, device="meta", memory_format=layout).stride()
    read = [_NO_IMAGE if lies is None else _image(lies, layout) for lies in images]
    written = [_image((torch.Size(made), stride), layout) if exists else _NO_IMAGE for exists in results]
    views = [view for view in (*read, *written) if view is not None]
    readable = len(views) == len(read) + len(written)
    fields = b""
    if readable:
        head = native_library.TYPES[dtype], layout == torch.channels_last, *numbers
        fields = structure.pack(*head, *_NO_ADDRESSES, *more, *itertools.chain(*views), *last)
    accumulator = torch.float64 if dtype == torch.float64 else torch.float32
    return _Plan(layout, readable, fields, made, stride, accumulator)


@functools.lru_cache(4096)
def _forward_plan(
    x: _Lies,
    residual: _Lies | None,
    dtype: torch.dtype,
    threads: int,
    eps: float,
    activation: str,
    negative_slope: float,
    pad: int,
    min_scale: float,
) -> _Plan:
    n, c, h, w = x[0]
    numbers = n, c, h, w, pad, _ACTIVATIONS[activation], threads, eps, negative_slope, min_scale
    return _plan(_FORWARD, x, (n, c, h + 2 * pad, w + 2 * pad), dtype, numbers, (x, residual), (True,))


@functools.lru_cache(4096)
def _backward_plan(
    grad: _Lies,
    saved: _Lies,
    residual: _Lies | None,
    dtype: torch.dtype,
    threads: int,
    activation: str,
    negative_slope: float,
    pad: int,
    min_scale: float,
    from_output: bool,
) -> _Plan:
    n, c, h, w = grad[0]
    h, w = h - 2 * pad, w - 2 * pad
    numbers = n, c, h, w, pad, _ACTIVATIONS[activation], threads, 0.0, negative_slope, min_scale  # eps is in rstd
    images, results = (grad, saved, residual), (True, residual is not None)
    return _plan(_BACKWARD, saved, (n, c, h, w), dtype, numbers, images, results, (from_output,), (0, 0, 0))


def _readable(image: Tensor, dtype: torch.dtype, layout: torch.memory_format) -> Tensor:
    """`image` itself if the library can address it, else a copy in `dtype` and `layout`."""
    image = image.to(dtype)
    return image if _image(_lies(image), layout) is not None else image.contiguous(memory_format=layout)


def _dense(parameter: Tensor | None, accumulator: torch.dtype) -> Tensor | None:
    """A parameter or statistic as the library reads it."""
    if parameter is None or (parameter.dtype == accumulator and parameter.is_contiguous()):
        return parameter
    refuse_complex(parameter)
    return parameter.to(accumulator).contiguous()


def _check_devices(*tensors: Tensor | None) -> None:
    for tensor in tensors:
        if tensor is not None and not tensor.is_cpu:
            raise ValueError(f"instance_norm_act: impl='native' needs CPU tensors, found one on {tensor.device.type}")


def _check(status: int, x: Tensor) -> None:
    if status:
        raise MemoryError(f"instance_norm_act: no memory for the sums of a tensor of shape {tuple(x.shape)}")


# ---- both directions ------------------------------------------------------------------------------------------------


def forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    slope: Tensor | None,
    residual: Tensor | None,
    eps: float,
    activation: str,
    negative_slope: float,
    reflection_pad: int,
    min_scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The same as `reference.forward`, for an x that has elements and that `refusal` accepts."""
    _check_devices(x, weight, bias, slope, residual)
    dtype, options = x.dtype, (eps, activation, negative_slope, reflection_pad, min_scale)
    if residual is not None and residual.dtype != dtype:
        residual = residual.to(dtype)
    while True:
        lies = None if residual is None else (residual.shape, residual.stride())
        plan = _forward_plan((x.shape, x.stride()), lies, dtype, torch.get_num_threads(), *options)
        if plan.readable:
            break
        x = _readable(x, dtype, plan.layout)
        residual = None if residual is None else _readable(residual, dtype, plan.layout)
    accumulator, statistics = plan.accumulator, plan.shape[:2]
    y = torch.empty_strided(plan.shape, plan.stride, dtype=dtype)
    mean, rstd = torch.empty(statistics, dtype=accumulator), torch.empty(statistics, dtype=accumulator)
    weight, bias, slope = _dense(weight, accumulator), _dense(bias, accumulator), _dense(slope, accumulator)
    addresses = _FORWARD_ADDRESSES.pack(
        x.data_ptr(),
        0 if residual is None else residual.data_ptr(),
        y.data_ptr(),
        0 if weight is None else weight.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        0 if slope is None else slope.data_ptr(),
        mean.data_ptr(),
        rstd.data_ptr(),
    )
    library = native_library.load()
    _check(library.vologan_norm_forward(plan.fields, addresses), x)
    return y, mean, rstd


def backward(
    grad: Tensor,
    saved: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    slope: Tensor | None,
    residual: Tensor | None,
    activation: str,
    negative_slope: float,
    reflection_pad: int,
    min_scale: float,
    from_output: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """The same as `reference.backward`, but the gradients of x and of the residual have x's dtype.

    The gradients of the slopes and of the residual are None without them.
    """
    _check_devices(grad, saved, mean, rstd, weight, bias, slope, residual)
    dtype, options = saved.dtype, (activation, negative_slope, reflection_pad, min_scale, from_output)
    if grad.dtype != dtype:
        grad = grad.to(dtype)
    if residual is not None and residual.dtype != dtype:
        residual = residual.to(dtype)
    while True:
        lies = None if residual is None else (residual.shape, residual.stride())
        images = (grad.shape, grad.stride()), (saved.shape, saved.stride()), lies
        plan = _backward_plan(*images, dtype, torch.get_num_threads(), *options)
        if plan.readable:
            break
        grad, saved = _readable(grad, dtype, plan.layout), _readable(saved, dtype, plan.layout)
        residual = None if residual is None else _readable(residual, dtype, plan.layout)
    accumulator, channels = plan.accumulator, plan.shape[1]
    dx = torch.empty_strided(plan.shape, plan.stride, dtype=dtype)
    d_residual = None if residual is None else torch.empty_strided(plan.shape, plan.stride, dtype=dtype)
    d_weight, d_bias = torch.empty(channels, dtype=accumulator), torch.empty(channels, dtype=accumulator)
    d_slope = None if slope is None else torch.empty(channels, dtype=accumulator)
    weight, bias, slope = _dense(weight, accumulator), _dense(bias, accumulator), _dense(slope, accumulator)
    dense_mean, dense_rstd = _dense(mean, accumulator), _dense(rstd, accumulator)
    assert dense_mean is not None and dense_rstd is not None
    addresses = _BACKWARD_ADDRESSES.pack(
        grad.data_ptr(),
        saved.data_ptr(),
        0 if residual is None else residual.data_ptr(),
        dx.data_ptr(),
        0 if d_residual is None else d_residual.data_ptr(),
        0 if weight is None else weight.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        0 if slope is None else slope.data_ptr(),
        dense_mean.data_ptr(),
        dense_rstd.data_ptr(),
        d_weight.data_ptr(),
        d_bias.data_ptr(),
        0 if d_slope is None else d_slope.data_ptr(),
    )
    library = native_library.load()
    _check(library.vologan_norm_backward(plan.fields, addresses), saved)
    return dx, d_weight, d_bias, d_slope, d_residual
