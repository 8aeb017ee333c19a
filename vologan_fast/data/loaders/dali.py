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
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import nvidia.dali
import torch
from nvidia.dali import fn, math, ops, pipeline_def, plugin_manager, types

from vologan_fast.config import DOMAINS, DepthSpec
from vologan_fast.data.errors import DataError
from vologan_fast.data.loaders.source import Batches, Plan
from vologan_fast.data.pixels import BACKGROUND, DepthRule, probe_depth, read_color, read_square
from vologan_fast.data.records import Record, Source, place
from vologan_fast.data.sampling import Sampler

PREFETCH = 3
"""Batches of each pipeline in the making or ready, the one that is asked for among them."""
_CHUNK = 16  # colour images that are decoded at a time while images are kept

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


class DaliSource:
    """Training batches from files, by one DALI pipeline per domain. Call `load_operators` before."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._on_gpu = plan.device.type == "cuda"
        self.decoder = f"DALI {VERSION}, {'GPU' if self._on_gpu else 'CPU'}"
        self.description = f"{self.decoder}, {plan.threads_in_words}"

    def batches(self, step: int) -> Batches:
        """See `BatchSource`. A batch is the memory that DALI decoded into, for as long as it is referenced."""
        plan = self._plan
        pipelines = {
            domain: _pipeline(
                _source(plan.records[domain], plan.sampler, domain, step),
                plan.specs[domain],
                plan.size,
                self._on_gpu,
                batch_size=plan.sampler.part,
                num_threads=plan.threads,
                device_id=plan.device.index,
                prefetch_queue_depth=PREFETCH,
                exec_dynamic=True,  # the static executor would overwrite batches that are still in use
            )
            for domain in DOMAINS
        }
        try:
            while True:
                yield tuple(_next_batch(pipelines[domain], plan.device) for domain in DOMAINS)
                step += 1
        except (RuntimeError, UnicodeDecodeError):  # DALI takes a message for UTF-8, whatever name is in it
            if broken := _find_broken(plan, range(step, step + PREFETCH + 1)):
                raise broken from None
            raise

    def colors(self, domain: str) -> Iterator[torch.Tensor]:
        """See `FileSource`; the images are on the plan's device."""
        records, device = self._plan.records[domain], self._plan.device

        def source(i: int) -> tuple[Any, Any]:
            files = [record.color for record in records[i * _CHUNK : (i + 1) * _CHUNK]]
            if not files:
                raise StopIteration
            return _places(files)

        pipeline = _color_pipeline(
            source,
            self._plan.size,
            self._on_gpu,
            batch_size=_CHUNK,
            num_threads=self._plan.threads * len(DOMAINS),
            device_id=device.index,
            prefetch_queue_depth=PREFETCH,
            exec_dynamic=True,
        )
        for first in range(0, len(records), _CHUNK):
            try:
                (colors,) = pipeline.run(torch.cuda.current_stream(device) if self._on_gpu else None)
            except (RuntimeError, UnicodeDecodeError):
                for record in records[first : first + (PREFETCH + 1) * _CHUNK]:
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


def _find_broken(plan: Plan, steps: range) -> DataError | None:
    """The error of the first image that is broken. DALI's own does not name it, so the images are read again."""
    for step in steps:
        for domain in DOMAINS:
            for record in (plan.records[domain][draw.index] for draw in plan.sampler.draw(domain, step)):
                try:
                    read_square(record, plan.specs[domain], plan.size)
                except DataError as broken:
                    return broken
                if reason := probe_depth(record.depth).reason:
                    return DataError(
                        f"{record.depth}: {reason}, which DALI's depth operator does not read; set "
                        "--data.backend torch, or convert the file"
                    )
    return None
