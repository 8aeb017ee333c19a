"""The instance norm on a CPU, by the library `_norm.so`, which is built from `kernels/csrc`.

The library knows nothing of torch. It gets one structure of pointers, sizes and strides (`csrc/norm.h`), in which every
field has eight bytes. It works with as many threads as torch does, and they are the threads of torch.

`VOLOGAN_KERNELS_LEVEL` names another instruction set than the fastest one: avx512_bf16, avx2 or plain.
"""

from __future__ import annotations

import ctypes
import functools
import os
import struct
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vologan_kernels.layouts import addressable, output_layout, view_of
from vologan_kernels.precision import accumulator_of

# ---- the library ----------------------------------------------------------------------------------------------------

LEVEL_VARIABLE = "VOLOGAN_KERNELS_LEVEL"


def refusal(x: Tensor) -> str | None:
    """Why the library cannot compute with x, or None if it can."""
    if not x.is_cpu:
        return f"x must be a CPU tensor, found one on {x.device.type}"
    if x.dtype not in _TYPES:
        return f"x must be float32, bfloat16 or float64, found {x.dtype}"
    library = _load()
    return library if isinstance(library, str) else None


def levels() -> tuple[str, ...]:
    """The instruction sets that this processor can run, the fastest first; none without the library."""
    library = _load()
    return () if isinstance(library, str) else tuple(library.levels().decode().split())


def use_level(name: str) -> None:
    """Compute with another instruction set than the fastest one. Raises ValueError if this processor cannot run it."""
    library = _load()
    if isinstance(library, str):
        raise ValueError(library)
    _use_level(library, name, "level")


class _Library(NamedTuple):
    """The functions of the library."""

    forward: Any
    backward: Any
    levels: Any
    use_level: Any


@functools.cache
def _load() -> _Library | str:
    """The library, or a sentence that says why there is none."""
    path = _installed()
    if path is None:
        return "the library _norm.so is not there, because no C++ compiler was found when vologan_kernels was installed"
    try:
        found = ctypes.CDLL(str(path))
    except OSError as error:
        return f"the library _norm.so cannot be loaded: {error}"
    for run in (found.vologan_norm_forward, found.vologan_norm_backward, found.vologan_norm_use_level):
        run.argtypes, run.restype = [ctypes.c_char_p], ctypes.c_int
    found.vologan_norm_levels.restype = ctypes.c_char_p
    _share_threads(found)
    library = _Library(
        found.vologan_norm_forward, found.vologan_norm_backward, found.vologan_norm_levels, found.vologan_norm_use_level
    )
    level = os.environ.get(LEVEL_VARIABLE)
    if level:
        _use_level(library, level, LEVEL_VARIABLE)
    return library


def _installed() -> Path | None:
    """The library beside this file. An editable installation has it in another folder of the package's path."""
    for folder in sys.modules[__package__].__path__:
        path = Path(folder) / "_norm.so"
        if path.is_file():
            return path
    return None


def _share_threads(library: Any) -> None:
    """Let the library use torch's OpenMP runtime. Without it, the library has threads of its own."""
    try:
        # The symbols of whichever runtime this torch depends on.
        torchs = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        functions = [getattr(torchs, name) for name in ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")]
    except (OSError, AttributeError):
        return
    library.vologan_norm_use_openmp(*(ctypes.cast(function, ctypes.c_void_p) for function in functions))


def _use_level(library: _Library, name: str, source: str) -> None:
    if library.use_level(name.encode()):
        known = library.levels().decode()
        raise ValueError(f"{source} must be an instruction set of this processor ({known}), found {name!r}")


# ---- structures of csrc/norm.h --------------------------------------------------------------------------------------

_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float64: 2}
_ACTIVATIONS = {"identity": 0, "relu": 1, "leaky_relu": 2, "prelu": 3, "silu": 4, "gelu": 5, "elu": 6, "tanh": 7}
_NORM, _VIEW = "9q3d5Q", "Q3q"
_FORWARD = struct.Struct("=" + _NORM + 3 * _VIEW)
_BACKWARD = struct.Struct("=" + _NORM + "q" + 5 * _VIEW + "3Q")
_NO_IMAGE = 0, 0, 0, 0


def _readable(image: Tensor, dtype: torch.dtype, layout: torch.memory_format) -> Tensor:
    """`image` itself if the library can address it, else a copy in `dtype` and `layout`.

    The copy also serves an image that is one number in all places, which `addressable` lets pass.
    """
    if not image.is_cpu:
        raise ValueError(f"instance_norm_act: impl='native' needs CPU tensors, found one on {image.device.type}")
    if image.dtype == dtype and image.is_contiguous(memory_format=layout):
        return image
    if not any(image.stride()):
        return image.to(dtype).contiguous(memory_format=layout)
    return addressable(image.to(dtype), layout)


def _view(image: Tensor, layout: torch.memory_format) -> tuple[int, int, int, int]:
    """The fields of an image that is readable: the pointer, and the strides of sample, position and channel."""
    _, c, h, w = image.shape
    if image.is_contiguous(memory_format=layout):  # strides of dimensions of size 1 may be anything
        return (
            (image.data_ptr(), c * h * w, 1, h * w)
            if layout == torch.contiguous_format
            else (image.data_ptr(), c * h * w, c, 1)
        )
    _, n, p, channel = view_of(image)
    if layout == torch.contiguous_format:
        return image.data_ptr(), n, (1 if h * w == 1 else p), channel
    return image.data_ptr(), n, p, (1 if c == 1 else channel)


def _dense(parameter: Tensor | None, accumulator: torch.dtype) -> Tensor | None:
    """A parameter or statistic as the library reads it."""
    if parameter is None:
        return None
    if not parameter.is_cpu:
        raise ValueError(f"instance_norm_act: impl='native' needs CPU tensors, found one on {parameter.device.type}")
    if parameter.dtype == accumulator and parameter.is_contiguous():
        return parameter
    return parameter.to(accumulator).contiguous()


def _pointer(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


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
    (n, c, h, w), dtype = x.shape, x.dtype
    layout, accumulator = output_layout(x), accumulator_of(x)
    y = torch.empty((n, c, h + 2 * reflection_pad, w + 2 * reflection_pad), dtype=dtype, memory_format=layout)
    mean, rstd = torch.empty((n, c), dtype=accumulator), torch.empty((n, c), dtype=accumulator)
    x = _readable(x, dtype, layout)
    residual = None if residual is None else _readable(residual, dtype, layout)
    parameters = _dense(weight, accumulator), _dense(bias, accumulator), _dense(slope, accumulator)
    fields = _FORWARD.pack(
        _TYPES[dtype],
        layout == torch.channels_last,
        n,
        c,
        h,
        w,
        reflection_pad,
        _ACTIVATIONS[activation],
        torch.get_num_threads(),
        eps,
        negative_slope,
        min_scale,
        *map(_pointer, parameters),
        mean.data_ptr(),
        rstd.data_ptr(),
        *_view(x, layout),
        *(_NO_IMAGE if residual is None else _view(residual, layout)),
        *_view(y, layout),
    )
    library: Any = _load()
    _check(library.forward(fields), x)
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
    (n, c, h, w), dtype = grad.shape, saved.dtype
    h, w = h - 2 * reflection_pad, w - 2 * reflection_pad
    layout, accumulator = output_layout(saved), accumulator_of(saved)
    dx = torch.empty((n, c, h, w), dtype=dtype, memory_format=layout)
    d_residual = None if residual is None else torch.empty((n, c, h, w), dtype=dtype, memory_format=layout)
    d_weight, d_bias = torch.empty(c, dtype=accumulator), torch.empty(c, dtype=accumulator)
    d_slope = None if slope is None else torch.empty(c, dtype=accumulator)
    grad, saved = _readable(grad, dtype, layout), _readable(saved, dtype, layout)
    residual = None if residual is None else _readable(residual, dtype, layout)
    parameters = [_dense(tensor, accumulator) for tensor in (weight, bias, slope, mean, rstd)]
    fields = _BACKWARD.pack(
        _TYPES[dtype],
        layout == torch.channels_last,
        n,
        c,
        h,
        w,
        reflection_pad,
        _ACTIVATIONS[activation],
        torch.get_num_threads(),
        0.0,  # eps is in rstd
        negative_slope,
        min_scale,
        *map(_pointer, parameters),
        from_output,
        *_view(grad, layout),
        *_view(saved, layout),
        *(_NO_IMAGE if residual is None else _view(residual, layout)),
        *_view(dx, layout),
        *(_NO_IMAGE if d_residual is None else _view(d_residual, layout)),
        d_weight.data_ptr(),
        d_bias.data_ptr(),
        _pointer(d_slope),
    )
    library: Any = _load()
    _check(library.backward(fields), saved)
    return dx, d_weight, d_bias, d_slope, d_residual
