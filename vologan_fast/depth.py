"""Read depth images from files or bytes as float32, in the file's own units.

    depth.probe("a.exr")                        # what the file holds, from its headers
    depth.decode("a.exr")                       # (H, W) float32
    depth.decode_batch(paths, out=batch)        # into (N, H, W) float32 memory of the caller, on all cores

The native decoder reads EXR of one part in scan lines (uncompressed, RLE, ZIPS or ZIP), grey PNG of 8 or 16 bits, NPY
and PFM. The OpenEXR package reads every other EXR, if it is installed. Pillow reads TIFF, and zipfile unpacks NPZ
(`depth_libraries`). The format follows from the content, never from the file's name. A source is a path (`str` or
`os.PathLike`) or a bytes-like object with the whole file.

A file without a depth image raises `DecodeError`. Its message names the file, the part of the file, what was expected
there and what was found. A path that cannot be read raises an `OSError` with the reason (`FileNotFoundError`, …).
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
    from vologan_fast import _depth, depth_libraries
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
    """One channel of a depth file. `dtype` is the NumPy name of its sample type in the file."""

    name: str
    dtype: str


@dataclass(frozen=True)
class Info:
    """The description of a depth file, from its headers.

    For an EXR of several parts, compression, size and windows are those of the part that holds the chosen channel.
    Without a chosen channel, they are those of the first part.
    """

    format: str
    """`exr`, `png`, `npy`, `pfm`, `tiff` or `npz`."""
    compression: str
    """`none`, `rle`, `zips`, `zip`, `piz`, …; `deflate` for PNG, `zip` for NPZ."""
    width: int
    height: int
    """The size of the data window in pixels (with `width`). `decode` returns an array of this size."""
    data_window: tuple[int, int, int, int]
    """First column, first row, last column, last row. Only in EXR it may begin at another pixel than 0, 0."""
    display_window: tuple[int, int, int, int]
    """The window of the whole picture, given as `data_window` is. Only in EXR they may differ: the data window may be
    larger (overscan), smaller (a crop), or lie elsewhere."""
    channels: tuple[Channel, ...]
    """The channels of all parts, or the arrays of an NPZ. For formats whose only channel has no name, there is one,
    called `Y`."""
    channel: Channel | None
    """The channel that `decode` reads. None if it refuses the file, because no channel or several could be meant."""
    why: str
    """Why this channel is chosen, such as "its name says depth". Without a channel: why not, and which there are."""
    decoder: str
    """The decoder that reads the file: `native`, `OpenEXR`, `Pillow` (TIFF) or `zipfile` (NPZ)."""
    reason: str
    """The reason why the native decoder does not read the file. Empty for `native`."""


def probe(
    source: Source, channel: str | None = None, *, name: str = "<bytes>", limits: Limits = _DEFAULT_LIMITS
) -> Info:
    """Describe a depth file without decoding it. Raises `DecodeError` and `OSError` as `decode` does.

    It does not raise an error if no channel can be chosen. `channel` and `name` are those of `decode`.
    """
    fields = _depth.probe(source, channel, limits, name)
    if (format_ := fields["format"]) in depth_libraries.READERS:
        fields |= depth_libraries.describe(format_, *_content(source, name), channel, limits)
        fields["data_window"] = fields["display_window"] = (0, 0, fields["width"] - 1, fields["height"] - 1)
    reason, chosen, _ = (fields.pop(key) for key in ("not_native", "chosen", "place"))
    channels = tuple(Channel(*channel) for channel in fields.pop("channels"))
    return Info(
        **fields,
        channels=channels,
        channel=None if chosen is None else channels[chosen],
        decoder=depth_libraries.READERS.get(format_, "OpenEXR") if reason else "native",
        reason=reason,
    )


def decode(
    source: Source, channel: str | None = None, *, name: str = "<bytes>", limits: Limits = _DEFAULT_LIMITS
) -> NDArray[np.float32]:
    """Decode one channel of a depth file to a new (height, width) array, which is its data window.

    `channel` is the name of a channel, and may have the name of its part before it. Without it, the names of parts,
    layers and channels decide. A name that says depth is chosen (`Z`, `ViewLayer.Depth.V`, `WorldDepth.R`), also of a
    layer of colours, of which it is R. G and B must then be equal to R or constant. If no name says depth, an only
    channel is decoded, and the R of a grey picture: a file with nothing but R, G, B and perhaps alpha, where R = G = B.
    Otherwise the error lists the channels. The channels of an NPZ are its arrays.

    Integers beyond 2²⁴ and doubles are rounded to the nearest float32. NaN and infinities are kept, but the payload of
    a NaN may change. `name` stands for a file's name in errors about bytes.

    Raises `DecodeError` for a file in which no channel or several channels could be meant, and for a file with broken
    content. Raises `OSError` for a path that cannot be read.
    """
    try:
        return _depth.decode(source, channel, limits, name)
    except _depth.NotNative as error:
        return _decode_with_library(source, channel, error, limits, name)


def decode_batch(
    sources: Sequence[Source],
    out: NDArray[np.float32] | torch.Tensor | None = None,
    *,
    threads: int | None = None,
    channel: str | None = None,
    limits: Limits = _DEFAULT_LIMITS,
) -> NDArray[np.float32] | torch.Tensor:
    """Decode `sources[i]` into `out[i]` and return `out`, which has shape (N, H, W). The GIL is released meanwhile.

    `out` is a float32 NumPy array or torch tensor. Its strides may have any value, also a negative one, as long as no
    two elements share memory. Without `out`, a new array of the first image's size is made. All images must have the
    size of `out`. `threads` defaults to the number of cores that this process may use. The result does not depend on
    it.

    A tensor on a GPU needs a decoder that was built with CUDA. EXR that is read natively is decoded on the GPU, in the
    current stream. Other files are decoded on one core and copied. The bits are the same as on the CPU.

    If sources fail, the error of `decode` for the first of them is raised, and it names the source. Then `out` holds an
    unspecified mixture of old and decoded values. Raises `ValueError` and `TypeError` for an unsuitable `out`, and
    `ValueError` for `threads` below 1 or no sources without `out`.
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
            image = _decode_with_library(sources[i], channel, error, limits, name)
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
    info = probe(sources[0], channel, limits=limits)
    return len(sources), info.height, info.width


def _writable_view(out: Any, count: int) -> NDArray[np.float32]:
    """Return the memory of `out` as an array that native code can write element by element.

    Raises TypeError or ValueError for an `out` that is unsuitable.
    """
    if _is_tensor(out):
        _check_tensor(out)
        out = out.numpy()
    elif not isinstance(out, np.ndarray):
        raise TypeError(f"out: expected a NumPy array or a torch tensor, found {type(out).__name__}")
    if out.dtype != np.float32:  # also refuses the other byte order
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
    """Raise ValueError unless the shape is (count, H, W) and no two elements share memory. Strides are in bytes."""
    if len(shape) != 3 or shape[0] != count:
        raise ValueError(f"out: expected shape ({count}, H, W) for {count} sources, found {tuple(shape)}")
    extent = item  # bytes that the dimensions with smaller strides cover
    for stride, size in sorted((abs(stride), size) for stride, size in zip(strides, shape, strict=True) if size > 1):
        if stride < extent and 0 not in shape:
            raise ValueError(f"out: expected elements that share no memory, found strides {tuple(strides)}")
        extent += stride * (size - 1)


def _content(source: Source, name: str) -> tuple[bytes, str]:
    """Return the bytes of a source, and its name for errors."""
    if isinstance(source, (str, os.PathLike)):
        return Path(source).read_bytes(), os.fspath(source)
    return bytes(source), name


def _decode_with_library(
    source: Source, channel: str | None, reason: Exception, limits: Limits, name: str
) -> NDArray[np.float32]:
    """Decode a file that the native decoder does not read for the `reason`. It has checked the size of the file."""
    format_ = _depth.probe(source, channel, limits, name)["format"]
    if format_ in depth_libraries.READERS:
        content, name = _content(source, name)
        return depth_libraries.decode(format_, content, channel, name, limits)
    return _decode_with_openexr(source, channel, reason, limits, name)


def _decode_with_openexr(
    source: Source, channel: str | None, reason: Exception, limits: Limits, name: str
) -> NDArray[np.float32]:
    """Decode an EXR with the OpenEXR library, because the native decoder does not support it.

    The native decoder has read its headers before, and has checked the limits.
    """
    try:
        import OpenEXR
    except ImportError as error:
        raise DecodeError(f"{reason}; the OpenEXR library reads it: pip install OpenEXR") from error
    content, name = _content(source, name)
    part, own_name, equal = _depth.probe(source, channel, limits, name)["place"]
    try:
        # The library gets the bytes and not the name, because it accepts only names in UTF-8.
        parts = OpenEXR.File(io.BytesIO(content), separate_channels=True).parts  # without those that it cannot read
        planes: dict[str, Any] = next((found.channels for found in parts if part in (None, found.name())), {})
    except Exception as error:  # RuntimeError, ValueError, IndexError and others, depending on the damage
        raise DecodeError(f"{name}: OpenEXR library: expected a whole EXR, found {error}") from error
    if own_name not in planes:  # the library has printed the reason
        raise DecodeError(f"{name}: OpenEXR library: expected samples, found none that it can read")
    image = _samples(planes[own_name], name)
    for other in equal:
        if not np.array_equal(image.view(np.int32), _samples(planes[other], name).view(np.int32)):
            raise DecodeError(
                f"{name}: channels: expected depth, or a grey picture, found colour: '{own_name}' and '{other}' differ"
                "; name the one that is depth by the option channel (--data.DOMAIN.channel)"
            )
    return image


def _samples(plane: Any, name: str) -> NDArray[np.float32]:
    """Return the samples of a channel of the OpenEXR library as float32."""
    if (plane.xSampling, plane.ySampling) != (1, 1):
        raise DecodeError(
            f"{name}: channel '{plane.name}': expected a sample for each pixel, "
            f"found one for {plane.xSampling} × {plane.ySampling} pixels"
        )
    return np.ascontiguousarray(plane.pixels, np.float32)
