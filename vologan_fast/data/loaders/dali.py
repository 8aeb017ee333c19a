"""Batches by NVIDIA DALI. Each domain has one pipeline with its own threads, which works a few batches ahead.

    sampler → places, flip, shift → fn.vologan.read → fn.decoders.image → fn.resize ┐
                                  → fn.vologan.read → fn.vologan.depth ─────────────┴→ _pack → batch

`fn.vologan.*` are the native operators of csrc/dali. With a GPU, the colour is decoded on the GPU. So is EXR depth, if
the operators were built with CUDA. On the CPU the native loader is faster, but the same graph runs there if the
settings require it (`data.backend` = "dali").

The pipelines hold no state. All random values come in through `external_source`, as a function of the step. This
module is imported only if DALI will be used, because importing it imports DALI.
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

from vologan_fast.config import DOMAINS, Channels, DepthSpec
from vologan_fast.data.errors import DataError
from vologan_fast.data.loaders.source import Batches, Plan
from vologan_fast.data.pixels import BACKGROUND, DepthRule, accepted_types, probe_depth, read_color, read_cropped
from vologan_fast.data.records import Record, Source, files_of, place
from vologan_fast.data.sampling import Sampler
from vologan_fast.data.waiting import ReadingThreads, result_of

PREFETCH = 3
"""The number of batches of each pipeline that are ready or in progress, including the requested one."""
_CHUNK = 16  # colour images that are decoded at a time while images are kept

VERSION: str = nvidia.dali.__version__


@functools.cache
def load_operators() -> str:
    """Load the operators of csrc/dali into DALI, once. Returns the reason if this fails, or "" if it succeeds."""
    spec = importlib.util.find_spec("vologan_fast._dali_plugin")
    if spec is None or spec.origin is None:
        return "its depth operator was not built"
    try:
        plugin_manager.load_library(spec.origin)
    except RuntimeError:
        return f"its depth operator was built for another version than the installed DALI {VERSION}"
    return ""


def decodes_on_gpu() -> bool:
    """Return whether fn.vologan.depth was built with CUDA, so that it decodes EXR on a GPU.

    Call `load_operators` before.
    """
    return "vologan__Depth" in ops.mixed_ops()


class DaliSource:
    """Training batches from files, by one DALI pipeline per domain. Call `load_operators` before."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._on_gpu = plan.device.type == "cuda"
        self.decoder = f"DALI {VERSION}, {'GPU' if self._on_gpu else 'CPU'}"
        self.description = f"{self.decoder}, {plan.threads_in_words}"

    def batches(self, step: int) -> Batches:
        """See `BatchSource`. A batch uses DALI's memory without a copy, and keeps it while the batch is referenced."""
        plan = self._plan
        pipelines = {
            domain: _pipeline(
                _source(plan.records[domain], plan.sampler, domain, step, plan.channels[domain]),
                plan.specs[domain],
                plan.channels[domain],
                plan.size,
                plan.limits.pixels,
                self._on_gpu,
                batch_size=plan.sampler.part,
                num_threads=plan.threads,
                device_id=plan.device.index,
                prefetch_queue_depth=PREFETCH,
                exec_dynamic=True,  # the static executor would overwrite batches that are still in use
            )
            for domain in DOMAINS
        }

        def files() -> list[Source]:
            return files_of(plan.records[d][draw.index] for d in DOMAINS for draw in plan.sampler.draw(d, step))

        try:
            with ReadingThreads(1) as thread:  # DALI itself would wait for a file, and for no signal
                while True:
                    stream = torch.cuda.current_stream(plan.device) if self._on_gpu else None
                    batch = thread.submit(lambda stream=stream: [pipelines[d].run(stream) for d in DOMAINS])
                    yield tuple(map(_as_batch, result_of(batch, files, plan.patience)))
                    step += 1
        except (RuntimeError, UnicodeDecodeError):  # DALI decodes its message as UTF-8, file names may be other bytes
            if broken := _find_broken(plan, range(step, step + PREFETCH + 1)):
                raise broken from None
            raise

    def colors(self, domain: str, records: Sequence[Record]) -> Iterator[torch.Tensor]:
        """See `FileSource`; the images are on the plan's device."""
        device = self._plan.device

        def source(i: int) -> tuple[Any, Any]:
            files = [record.color for record in records[i * _CHUNK : (i + 1) * _CHUNK]]
            if not files:
                raise StopIteration
            return _places(files)

        pipeline = _color_pipeline(
            source,
            self._plan.size,
            self._plan.limits.pixels,
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
                    read_color(record.color, self._plan.limits)  # names the file
                raise
            yield torch.from_dlpack(colors.as_tensor())


def _source(
    records: Sequence[Record], sampler: Sampler, domain: str, first_step: int, channels: Channels
) -> Callable[[int], tuple[Any, ...]]:
    """Return the function that gives the inputs of iteration i of a domain's pipeline.

    The inputs are paths and spans of the colour files, paths and spans of the depth files, flip, top and left. Files
    that the channels do not need are left out.
    """

    def iteration(i: int) -> tuple[Any, ...]:
        index, *augment = sampler.rows(domain, first_step + i).T
        images = [records[k] for k in index.tolist()]
        return (
            *(_places([image.color for image in images]) if channels.color else ()),
            *(_places([image.depth for image in images]) if channels.depth else ()),
            *(values.copy() for values in augment),
        )

    return iteration


def _places(files: Sequence[Source]) -> tuple[list[np.ndarray[Any, Any]], np.ndarray[Any, Any]]:
    """Return the inputs of fn.vologan.read: for each file the path, and int64 (N, 3) of offset, size and CRC-32."""
    paths, *spans = zip(*map(place, files), strict=True)
    return [np.frombuffer(path, np.uint8) for path in paths], np.array(spans, np.int64).T.copy()


@pipeline_def(enable_conditionals=True)
def _pipeline(
    source: Callable[[int], tuple[Any, ...]],
    spec: DepthSpec,
    channels: Channels,
    size: tuple[int, int],
    max_pixels: int,
    on_gpu: bool,
) -> Any:
    """Build the graph of a domain, which makes batches of float32 (H, W, C)."""
    files = 2 * ((channels.color > 0) + channels.depth)
    *places, flip, top, left = fn.external_source(source, num_outputs=files + 3, batch=True)
    color, depth, shape = None, None, fn.constant(idata=[0, 0, 0], shape=[3], dtype=types.INT64)
    if channels.color:
        color, shape = _color(fn.vologan.read(*places[:2], color=True, max_pixels=max_pixels), size, on_gpu)
    if channels.depth:
        depth = _depth(places[-2], places[-1], shape, spec, size, max_pixels, on_gpu)
    return _pack(color, depth, channels, flip, top, left, size)


def _depth(
    path: Any, span: Any, shape: Any, spec: DepthSpec, size: tuple[int, int], max_pixels: int, on_gpu: bool
) -> Any:
    """Return the normalised depth of a depth file, float32 (H, W, 1). `shape` is that of its colour image, or zeros."""
    rule = DepthRule.of(spec)
    depth = fn.vologan.depth(
        fn.vologan.read(path, span),
        path,
        shape,
        device="mixed" if on_gpu and decodes_on_gpu() else "cpu",
        height=size[0],
        width=size[1],
        gain=rule.gain,
        offset=rule.offset,
        background=rule.background,
        floor=rule.floor,
        invalid=list(rule.invalid),
        channel=spec.channel or "",
        types=accepted_types(spec),
        max_pixels=max_pixels,
    )
    return depth.gpu() if on_gpu else depth


@pipeline_def(enable_conditionals=True)
def _color_pipeline(source: Callable[[int], Any], size: tuple[int, int], max_pixels: int, on_gpu: bool) -> Any:
    """Build the graph that decodes colour alone, in batches of uint8 (H, W, 3)."""
    path, span = fn.external_source(source, num_outputs=2, batch=True)
    color, _ = _color(fn.vologan.read(path, span, color=True, max_pixels=max_pixels), size, on_gpu)
    return color


def _color(encoded: Any, size: tuple[int, int], on_gpu: bool) -> tuple[Any, Any]:
    """Return the part of a colour file that a batch shows, uint8 (H, W, 3), and the shape of the whole image."""
    shape = fn.peek_image_shape(encoded, adjust_orientation=False)
    color = fn.decoders.image(
        encoded, device="mixed" if on_gpu else "cpu", adjust_orientation=False, output_type=types.RGB
    )
    if shape[0] != size[0] or shape[1] != size[1]:
        color = _cropped(color, shape, size)
    return color, shape


def _cropped(color: Any, shape: Any, size: tuple[int, int]) -> Any:
    """Return the centre, resized to `size`. `pixels.crop_shape` is the definition of the rectangle."""
    (h, w), height, width = size, shape[0], shape[1]
    smaller = math.min(height * w, width * h)  # the product with the side that is not cut
    crop = fn.stack(math.max((2 * smaller + w) // (2 * w), 1), math.max((2 * smaller + h) // (2 * h), 1))
    extent, crop = fn.cast(shape[:2], dtype=types.FLOAT), fn.cast(crop, dtype=types.FLOAT)
    start = (extent - crop) / 2
    return fn.resize(
        color,
        size=size,
        roi_start=start,
        roi_end=start + crop,
        interp_type=types.INTERP_LINEAR,
        antialias=True,
    )


def _pack(color: Any, depth: Any, channels: Channels, flip: Any, top: Any, left: Any, size: tuple[int, int]) -> Any:
    """Do the same as `pixels.pack`, with DALI's own operators, which run on the CPU and on the GPU."""
    planes = []
    if channels.color:
        levels = (_grey(color) if channels.color == 1 else color) / 255.0
        planes.append(levels * (depth != BACKGROUND) if channels.depth else levels)
    if channels.depth:
        planes.append(math.max(depth, 0.0))
    image = fn.cat(*planes, axis=2) if len(planes) > 1 else planes[0]
    return fn.slice(
        fn.flip(image, horizontal=flip),
        start=fn.stack(top, left),
        shape=size,
        axes=(0, 1),
        out_of_bounds_policy="pad",
        fill_values=0.0,
    )


def _grey(color: Any) -> Any:
    """Do the same as `pixels.grey`: uint8 (H, W, 3) to int32 (H, W, 1)."""
    red, green, blue = (fn.cast(color[:, :, c : c + 1], dtype=types.INT32) for c in range(3))
    return (red * 19595 + green * 38470 + blue * 7471 + (1 << 15)) // (1 << 16)


def _as_batch(outputs: Any) -> torch.Tensor:
    """Return what a pipeline has made as (N, C, H, W) channels_last, without a copy."""
    (images,) = outputs
    return torch.from_dlpack(images.as_tensor()).permute(0, 3, 1, 2)


def _find_broken(plan: Plan, steps: range) -> DataError | None:
    """Return the error of the first broken image in the steps, or None if there is none.

    DALI's own error does not name the file. Therefore the images are read again.
    """
    for step in steps:
        for domain in DOMAINS:
            for record in (plan.records[domain][draw.index] for draw in plan.sampler.draw(domain, step)):
                try:
                    read_cropped(record, plan.specs[domain], plan.size, plan.channels[domain], plan.limits)
                except DataError as broken:
                    return broken
                if not plan.channels[domain].depth:
                    continue
                if reason := probe_depth(record.depth, plan.specs[domain].channel, plan.limits).reason:
                    return DataError(
                        f"{record.depth}: {reason}, which DALI's depth operator does not read; set "
                        "--data.backend torch, or convert the file"
                    )
    return None
