"""Batches by NVIDIA DALI: one pipeline per domain, each with its own threads, a few batches ahead of
training.

    sampler → places, flip, shift → fn.vologan.read → fn.decoders.image → fn.resize ┐
                                  → fn.vologan.read → fn.vologan.depth ─────────────┴→ _pack → batch

`fn.vologan.*` are the native operators of csrc/dali. On a GPU the colour is decoded there, and so is EXR depth if they
were built with CUDA. On the CPU, where the torch loader is faster, the same graph runs if it is asked for.

The pipelines hold no state: everything random comes in through `external_source`, as a function of the step.
This module is imported only where DALI will be used; importing it imports DALI.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import nvidia.dali
import torch
from nvidia.dali import fn, math, ops, pipeline_def, plugin_manager, types

from vologan_fast.config import DOMAINS, DepthSpec
from vologan_fast.data.errors import DataError
from vologan_fast.data.pixels import BACKGROUND, DepthRule, probe_depth, read_color, read_square
from vologan_fast.data.records import Record, Source, place
from vologan_fast.data.sampling import Sampler

PREFETCH = 3
"""Batches of each pipeline in the making or ready, the one that is asked for among them."""

VERSION: str = nvidia.dali.__version__


@functools.cache
def load_operators() -> str:
    """Loads csrc/dali's operators into DALI, once. Returns why they cannot be had; empty where they can."""
    spec = importlib.util.find_spec("vologan_fast._dali_plugin")
    if spec is None or spec.origin is None:
        return "its depth operator was not built"
    try:
        plugin_manager.load_library(spec.origin)
    except RuntimeError:
        return f"its depth operator was built for another version than the installed DALI {VERSION}"
    return ""


def decodes_on_gpu() -> bool:
    """Whether fn.vologan.depth was built with CUDA, and decodes EXR on GPUs; after `load_operators`."""
    return "vologan__Depth" in ops.mixed_ops()


def dali_batches(
    records: Mapping[str, Sequence[Record]],
    specs: Mapping[str, DepthSpec],
    sampler: Sampler,
    step: int,
    threads: int,
    device: torch.device,
) -> Iterator[tuple[torch.Tensor, ...]]:
    """Training batches of all DOMAINS from global step `step` on, without end; `close()` it. See
    `load_operators`.

    A batch is memory that DALI decoded into; it stays as it is for as long as it is referenced. Raises
    DataError soon before or when the step is reached to which a broken file belongs.
    """
    pipelines = {
        domain: _pipeline(
            _source(records[domain], sampler, domain, step),
            specs[domain],
            sampler.size,
            device.type == "cuda",
            batch_size=sampler.part,
            num_threads=threads,
            device_id=device.index,
            prefetch_queue_depth=PREFETCH,
            exec_dynamic=True,  # the static executor would overwrite batches that are still in use
        )
        for domain in DOMAINS
    }
    try:
        while True:
            yield tuple(_next_batch(pipelines[domain], device) for domain in DOMAINS)
            step += 1
    except (RuntimeError, UnicodeDecodeError):  # DALI takes a message for UTF-8, whatever name is in it
        ahead = range(step, step + PREFETCH + 1)
        if broken := _find_broken(records, specs, sampler, ahead):
            raise broken from None
        raise


def dali_colors(
    records: Sequence[Record], size: int, batch: int, threads: int, device: torch.device
) -> Iterator[torch.Tensor]:
    """The squares of the records' colour in order: uint8 (n, S, S, 3) on `device`, n = `batch` until the last.

    Raises DataError naming the file where one is broken.
    """

    def source(i: int) -> tuple[Any, Any]:
        files = [record.color for record in records[i * batch : (i + 1) * batch]]
        if not files:
            raise StopIteration
        return _places(files)

    on_gpu = device.type == "cuda"
    pipeline = _color_pipeline(
        source,
        size,
        on_gpu,
        batch_size=batch,
        num_threads=threads,
        device_id=device.index,
        prefetch_queue_depth=PREFETCH,
        exec_dynamic=True,
    )
    for first in range(0, len(records), batch):
        try:
            (colors,) = pipeline.run(torch.cuda.current_stream(device) if on_gpu else None)
        except (RuntimeError, UnicodeDecodeError):
            for record in records[first : first + (PREFETCH + 1) * batch]:
                read_color(record.color)  # names the file
            raise
        yield torch.from_dlpack(colors.as_tensor())


def _source(
    records: Sequence[Record], sampler: Sampler, domain: str, first_step: int
) -> Callable[[int], tuple[Any, ...]]:
    """What one iteration of a domain's pipeline works on: place of colour, place of depth, flip, top, left."""

    def iteration(i: int) -> tuple[Any, ...]:
        index, *augment = sampler.rows(domain, first_step + i).T
        images = [records[k] for k in index.tolist()]
        return (
            *_places([image.color for image in images]),
            *_places([image.depth for image in images]),
            *(values.copy() for values in augment),
        )

    return iteration


def _places(files: Sequence[Source]) -> tuple[list[np.ndarray[Any, Any]], np.ndarray[Any, Any]]:
    """The inputs of fn.vologan.read."""
    paths, *spans = zip(*map(place, files), strict=True)
    return [np.frombuffer(path, np.uint8) for path in paths], np.array(spans, np.int64).T.copy()


@pipeline_def(enable_conditionals=True)
def _pipeline(source: Callable[[int], tuple[Any, ...]], spec: DepthSpec, size: int, on_gpu: bool) -> Any:
    """Batches of float32 (S, S, 4)."""
    color_path, color_span, depth_path, depth_span, flip, top, left = fn.external_source(
        source, num_outputs=7, batch=True
    )
    color, shape = _color(fn.vologan.read(color_path, color_span), size, on_gpu)
    rule = DepthRule.of(spec)
    depth = fn.vologan.depth(
        fn.vologan.read(depth_path, depth_span),
        depth_path,
        shape,
        device="mixed" if on_gpu and decodes_on_gpu() else "cpu",
        size=size,
        gain=rule.gain,
        offset=rule.offset,
        background=rule.background,
        invalid=list(rule.invalid),
        channel=spec.channel or "",
    )
    return _pack(color, depth.gpu() if on_gpu else depth, flip, top, left, size)


@pipeline_def(enable_conditionals=True)
def _color_pipeline(source: Callable[[int], Any], size: int, on_gpu: bool) -> Any:
    """Batches of uint8 (S, S, 3)."""
    path, span = fn.external_source(source, num_outputs=2, batch=True)
    color, _ = _color(fn.vologan.read(path, span), size, on_gpu)
    return color


def _color(encoded: Any, size: int, on_gpu: bool) -> tuple[Any, Any]:
    """The square of a colour file, uint8 (S, S, 3), and the shape that the file has."""
    shape = fn.peek_image_shape(encoded, adjust_orientation=False)
    color = fn.decoders.image(
        encoded, device="mixed" if on_gpu else "cpu", adjust_orientation=False, output_type=types.RGB
    )
    if shape[0] != size or shape[1] != size:
        color = _square(color, shape, size)
    return color, shape


def _square(color: Any, shape: Any, size: int) -> Any:
    """The centre square, resized to (size, size)."""
    extent = fn.cast(shape[:2], dtype=types.FLOAT)
    side = math.min(extent[0], extent[1])
    start = (extent - side) / 2
    return fn.resize(
        color,
        size=(size, size),
        roi_start=start,
        roi_end=start + side,
        interp_type=types.INTERP_LINEAR,
        antialias=True,
    )


def _pack(color: Any, depth: Any, flip: Any, top: Any, left: Any, size: int) -> Any:
    """What `pixels.pack` does, by DALI's own operators, which run on either device."""
    rgbd = fn.cat(color / 255.0 * (depth != BACKGROUND), math.max(depth, 0.0), axis=2)
    return fn.slice(
        fn.flip(rgbd, horizontal=flip),
        start=fn.stack(top, left),
        shape=(size, size),
        axes=(0, 1),
        out_of_bounds_policy="pad",
        fill_values=0.0,
    )


def _next_batch(pipeline: Any, device: torch.device) -> torch.Tensor:
    """(N, 4, S, S) channels_last, without a copy."""
    stream = torch.cuda.current_stream(device) if device.type == "cuda" else None
    (images,) = pipeline.run(stream)
    return torch.from_dlpack(images.as_tensor()).permute(0, 3, 1, 2)


def _find_broken(
    records: Mapping[str, Sequence[Record]],
    specs: Mapping[str, DepthSpec],
    sampler: Sampler,
    steps: range,
) -> DataError | None:
    """DALI's error does not name the image: read those that were under way again, plainly, and say which is broken."""
    for step in steps:
        for domain in DOMAINS:
            for record in (records[domain][draw.index] for draw in sampler.draw(domain, step)):
                try:
                    read_square(record, specs[domain], sampler.size)
                except DataError as broken:
                    return broken
                if reason := probe_depth(record.depth).reason:
                    return DataError(
                        f"{record.depth}: {reason}, which DALI's depth operator does not read; set "
                        "--data.backend torch, or convert the file"
                    )
    return None
