"""Depth images from files or bytes to float32, in the file's own units.

    depth.probe("a.exr")                        # what the file holds, from its headers
    depth.decode("a.exr")                       # (H, W) float32
    depth.decode_batch(paths, out=batch)        # into (N, H, W) float32 memory of the caller, on all cores

Read natively: EXR of one part in scan lines, uncompressed or RLE, ZIPS or ZIP; grey PNG of 8 or 16 bits; NPY; PFM.
Every other EXR goes through the OpenEXR wheel, where that is installed. The format follows from the content, never
from the file's name. A source is a path (`str` or `os.PathLike`) or a bytes-like object with the whole file.

A file that does not hold a depth image raises `DecodeError`, which names the file, the part of it, what was expected
and what was found; a path that cannot be read raises the `OSError` that says why (`FileNotFoundError`, …).
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

try:
    from vologan_fast import _depth
except ImportError as error:
    raise ImportError(
        f"the depth decoder (vologan_fast._depth) is not compiled in {Path(__file__).parent}: install the project "
        "there (make setup, or pip install -e .), or start Python in another directory if it is installed elsewhere"
    ) from error

if TYPE_CHECKING:
    import torch

__all__ = ["Channel", "DecodeError", "Info", "Limits", "decode", "decode_batch", "probe"]

Source = str | os.PathLike[str] | bytes | bytearray | memoryview
DecodeError = _depth.DecodeError
Limits = _depth.Limits


_DEFAULT_LIMITS = Limits()


@dataclass(frozen=True)
class Channel:
    """One channel of a depth file; `dtype` is NumPy's name of the type of its samples in the file."""

    name: str
    dtype: str


@dataclass(frozen=True)
class Info:
    """What the headers of a depth file say. An EXR of several parts is described by its first."""

    format: str
    """`exr`, `png`, `npy` or `pfm`."""
    compression: str
    """`none`, `rle`, `zips`, `zip`, `piz`, …; `deflate` for PNG."""
    width: int
    height: int
    """Size in pixels of the data window, which is what `decode` returns."""
    data_window: tuple[int, int, int, int]
    """First column and row, last column and row; only EXR has one that does not begin at 0, 0."""
    channels: tuple[Channel, ...]
    """One called `Y` for formats whose only channel has no name."""
    decoder: str
    """Who reads it: `native` or `OpenEXR`."""
    reason: str
    """Why not the native decoder; empty for `native`."""


def probe(source: Source, *, name: str = "<bytes>", limits: Limits = _DEFAULT_LIMITS) -> Info:
    """Describe a depth file without decoding it; raises `DecodeError` and `OSError` as `decode` does."""
    fields = _depth.probe(source, limits, name)
    reason = fields.pop("not_native")
    channels = tuple(Channel(*channel) for channel in fields.pop("channels"))
    return Info(**fields, channels=channels, decoder="OpenEXR" if reason else "native", reason=reason)


def decode(
    source: Source, channel: str | None = None, *, name: str = "<bytes>", limits: Limits = _DEFAULT_LIMITS
) -> NDArray[np.float32]:
    """Decode one channel of a depth file to a new (height, width) array; errors call bytes `name`.

    Without `channel`: the only one, else the first of Z, Y, V, R that is there, bare or behind a layer's name
    (`ViewLayer.Depth.Z`), else an error that lists the channels. Integers beyond 2²⁴ and doubles are rounded to the
    nearest float32; NaN and infinities are values like any other.
    """
    try:
        return _depth.decode(source, channel, limits, name)
    except _depth.NotNative as error:
        return _decode_with_openexr(source, channel, error, limits, name)


def decode_batch(
    sources: Sequence[Source],
    out: NDArray[np.float32] | torch.Tensor | None = None,
    *,
    threads: int | None = None,
    channel: str | None = None,
    limits: Limits = _DEFAULT_LIMITS,
) -> NDArray[np.float32] | torch.Tensor:
    """Decode `sources[i]` into `out[i]` and return `out`, which has shape (N, H, W); the GIL is released meanwhile.

    `out` is a NumPy array or a torch tensor, float32, of any strides (negative ones too) that do not make elements
    share memory; without it, a new array of the first image's size. All images must have the size of `out`. `threads`
    defaults to the cores that this process may use; the result does not depend on it.

    Into a tensor on a GPU, EXR that is read natively is decoded there, in the current stream, if the decoder was built
    with CUDA; everything else is decoded on one core and copied. The bits are the same.

    Raises what `decode` raises for the first source (in their order) that fails, naming it; `out` then holds an
    unspecified mixture of old and decoded values.
    """
    sources = list(sources)
    if threads is None:
        threads = _available_cores()
    if threads < 1:
        raise ValueError(f"threads: expected at least 1, found {threads}")
    if out is None:
        out = np.empty(_batch_shape(sources, channel, limits), np.float32)
    if _is_tensor(out) and out.is_cuda:
        _check_tensor(out)
        item = out.element_size()
        _check_layout(out.shape, [stride * item for stride in out.stride()], item, len(sources))
        _decode_to_gpu(sources, out, channel, limits)
        return out
    target = _writable_view(out, len(sources))
    errors = _depth.decode_batch(sources, target, threads, channel, limits)
    for i, error in enumerate(errors):
        if isinstance(error, _depth.NotNative):
            name = _name(sources[i], i)
            image = _decode_with_openexr(sources[i], channel, error, limits, name)
            _check_size(name, image, target.shape)
            target[i] = image
        elif error is not None:
            raise error
    return out


def _decode_to_gpu(sources: list[Source], out: torch.Tensor, channel: str | None, limits: Limits) -> None:
    import torch

    if not hasattr(_depth, "decode_chunks_on_gpu"):
        raise ValueError(
            f"out: expected a tensor on the CPU, as the decoder was built without CUDA, found one on {out.device}"
        )
    stream = torch.cuda.current_stream(out.device).cuda_stream
    place = out.data_ptr(), tuple(out.shape), out.stride()
    with torch.cuda.device(out.device):
        results = _depth.decode_chunks_on_gpu(sources, *place, channel, limits, out.get_device(), stream)
        for i, (source, image, result) in enumerate(zip(sources, out, results, strict=True)):
            if isinstance(result, _depth.NotNative):
                name = _name(source, i)
                decoded = decode(source, channel, limits=limits, name=name)
                _check_size(name, decoded, out.shape)
                image.copy_(torch.from_numpy(decoded))
            elif isinstance(result, Exception):
                raise result


def _check_size(name: str, image: NDArray[np.float32], shape: Sequence[int]) -> None:
    if image.shape != tuple(shape[1:]):
        raise DecodeError(
            f"{name}: image: expected width × height {shape[2]} × {shape[1]}, found {image.shape[1]} × {image.shape[0]}"
        )


def _available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _name(source: Source, index: int) -> str:
    return os.fspath(source) if isinstance(source, (str, os.PathLike)) else f"<bytes of source {index}>"


def _batch_shape(sources: list[Source], channel: str | None, limits: Limits) -> tuple[int, int, int]:
    if not sources:
        raise ValueError("sources: expected at least one, or the argument out, found none")
    info = probe(sources[0], limits=limits)
    if info.decoder == "native":
        return len(sources), info.height, info.width
    height, width = decode(sources[0], channel, limits=limits).shape  # of the part that has the channel
    return len(sources), height, width


def _writable_view(out: Any, count: int) -> NDArray[np.float32]:
    """The memory of `out` as an array that can be written element by element; refuses whatever would lose writes."""
    if _is_tensor(out):
        _check_tensor(out)
        out = out.numpy()
    elif not isinstance(out, np.ndarray):
        raise TypeError(f"out: expected a NumPy array or a torch tensor, found {type(out).__name__}")
    if out.dtype != np.float32:  # of the machine's byte order
        raise TypeError(f"out: expected float32, found {out.dtype}")
    if not out.flags.writeable or not out.flags.aligned:
        raise ValueError("out: expected writable, aligned memory, found it read-only or unaligned")
    _check_layout(out.shape, out.strides, out.itemsize, count)
    return out


def _is_tensor(out: Any) -> TypeGuard[torch.Tensor]:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(out, torch.Tensor)


def _check_tensor(out: torch.Tensor) -> None:
    import torch

    if out.device.type not in ("cpu", "cuda"):
        raise ValueError(f"out: expected a tensor on the CPU or a GPU, found one on {out.device}")
    if out.requires_grad or out.dtype != torch.float32 or out.layout != torch.strided:
        raise TypeError(
            f"out: expected a dense float32 tensor that requires no gradient, found {out.dtype}, {out.layout}"
            f"{', requires_grad' if out.requires_grad else ''}"
        )


def _check_layout(shape: Sequence[int], strides: Sequence[int], item: int, count: int) -> None:
    """Raises ValueError unless the shape is (count, H, W) and no two elements share memory. Strides are in bytes."""
    if len(shape) != 3 or shape[0] != count:
        raise ValueError(f"out: expected shape ({count}, H, W) for {count} sources, found {tuple(shape)}")
    extent = item  # of the dimensions with smaller strides
    for stride, size in sorted((abs(stride), size) for stride, size in zip(strides, shape, strict=True) if size > 1):
        if stride < extent and 0 not in shape:
            raise ValueError(f"out: expected elements that share no memory, found strides {tuple(strides)}")
        extent += stride * (size - 1)


def _decode_with_openexr(
    source: Source, channel: str | None, reason: Exception, limits: Limits, name: str = "<bytes>"
) -> NDArray[np.float32]:
    """Read an EXR that the native decoder has described, and kept within the limits, but leaves to the library."""
    try:
        import OpenEXR
    except ImportError as error:
        raise DecodeError(f"{reason}; the OpenEXR library reads it: pip install OpenEXR") from error
    if isinstance(source, (str, os.PathLike)):
        name = os.fspath(source)
    try:
        # Not by its name, which the library wants in UTF-8.
        stream = io.BytesIO(Path(source).read_bytes() if isinstance(source, (str, os.PathLike)) else source)
        parts = OpenEXR.File(stream, separate_channels=True).parts
        planes = [(part.name(), plane) for part in parts for plane in part.channels.values()]
    except Exception as error:  # RuntimeError, ValueError, IndexError, … by what is broken
        raise DecodeError(f"{name}: OpenEXR library: expected a whole EXR, found {error}") from error
    if not planes:  # the library has printed why
        raise DecodeError(f"{name}: OpenEXR library: expected samples, found none that it can read")
    names = [plane.name for _, plane in planes]
    # Several parts may each have a Z: there the part's name goes before it, as a layer's would.
    names = [f"{part}.{plane.name}" if names.count(plane.name) > 1 else plane.name for part, plane in planes]
    plane = planes[_depth.choose_channel(names, channel, name)][1]
    if (plane.xSampling, plane.ySampling) != (1, 1):
        raise DecodeError(
            f"{name}: channel '{plane.name}': expected a sample for each pixel, "
            f"found one for {plane.xSampling} × {plane.ySampling} pixels"
        )
    return np.ascontiguousarray(plane.pixels, np.float32)
