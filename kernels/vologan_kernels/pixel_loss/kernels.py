"""Triton kernels of the image losses. The docstring of `vologan_kernels.pixel_loss` states the mathematics.

One launch each way serves all pairs of a step. A program reads one part of one plane, or of the planes of some channels
side by side, of both images of a pair. It keeps sums and, lane by lane, Welford's moments. Then it merges its lanes by
Chan's formula (Chan, Golub, LeVeque, 1983) and writes the result to the workspace.

The program that arrives last merges all parts, always in their order. So the same images give the same bits, whichever
program is the last. The backward walks over the images in the same way, with the merged moments.

The tensors of the pairs come as tuples of pointers, from which a program picks its own. All images have the layout of
the first prediction. All predictions have one dtype, and so have all targets. Images that differ are copied.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from vologan_kernels.device import arrivals, constants
from vologan_kernels.launch import PIXEL_REGISTERS, stream
from vologan_kernels.layouts import View, maker, output_layout
from vologan_kernels.pixel_loss.reference import C1, C2, METRICS, Moments
from vologan_kernels.planned_triton import BoundLaunch, planned
from vologan_kernels.precision import accumulator_of
from vologan_kernels.tiles_triton import TRITON_TYPES, load_tile, pick, store_tile

_C1, _C2 = tl.constexpr(C1), tl.constexpr(C2)
_MERGED_PARTS, _MERGED_LANES = tl.constexpr(8), tl.constexpr(32)
"""The tile in which the last program merges: a number of parts, and of planes side by side."""
PARTIAL_ROWS = 7
"""Numbers that a program writes for each plane. They are the number of pixels, Σ|a − b|, Σ(a − b)², μₐ, μ_b, the sums
of squared deviations of a and b together, and of a − b."""


@triton.jit
def _place(N, C: tl.constexpr, size, length, SPLITS: tl.constexpr, POSITIONS: tl.constexpr, CHANNELS: tl.constexpr):
    """The pair, sample, part, first position, end, and channels of this program."""
    blocks = tl.cdiv(C, CHANNELS)
    pid = tl.program_id(0)
    channel = pid % blocks * CHANNELS + tl.arange(0, CHANNELS)
    split = pid // blocks % SPLITS
    sample = (pid // (blocks * SPLITS) % N).to(tl.int64)
    begin = split * length
    return pid // (blocks * SPLITS * N), sample, split, begin, tl.minimum(begin + length, size), channel


@triton.jit
def _image(images, pair, size, C: tl.constexpr, CHANNELS_LAST: tl.constexpr):
    """The view of one of the images, which lie densely."""
    if CHANNELS_LAST:
        return View(pick(images, pair), size * C, C, 1)
    else:
        return View(pick(images, pair), size * C, 1, size)


@triton.jit
def pixel_loss_fwd_kernel(
    predictions,  # a tensor (N, C, H, W) for each pair
    targets,  # as predictions
    masks,  # uint8 tensors, as predictions; or none
    weights,  # (pairs, 3, C)
    workspace,  # (7, parts, planes), written: the results of the programs; a plane is (pair, image or batch, channel)
    of_planes,  # (3, planes), written: the metrics
    arrived,  # (): the number of programs that have written their results; 0 before and after
    loss,  # (), written
    metrics,  # (pairs, 3, C), written
    moments,  # (pairs, 5, images or 1, C), written
    N,
    size,  # H · W
    length,  # positions of a part
    mask_strides,  # of a sample, a position and a channel, the same for all masks
    C: tl.constexpr,
    BATCH: tl.constexpr,
    MASKED: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    SPLITS: tl.constexpr,
    POSITIONS: tl.constexpr,
    CHANNELS: tl.constexpr,
    ACC: tl.constexpr,
):
    pair, sample, split, begin, end, channel = _place(N, C, size, length, SPLITS, POSITIONS, CHANNELS)
    prediction = _image(predictions, pair, size, C, CHANNELS_LAST)
    target = _image(targets, pair, size, C, CHANNELS_LAST)
    lane = tl.arange(0, POSITIONS)
    seen = tl.zeros((POSITIONS, CHANNELS), ACC)
    absolute, squared = tl.zeros((POSITIONS, CHANNELS), ACC), tl.zeros((POSITIONS, CHANNELS), ACC)
    mean_a, mean_b = tl.zeros((POSITIONS, CHANNELS), ACC), tl.zeros((POSITIONS, CHANNELS), ACC)
    squares, squares_d = tl.zeros((POSITIONS, CHANNELS), ACC), tl.zeros((POSITIONS, CHANNELS), ACC)
    for first in range(begin, end, POSITIONS):
        position = first + lane
        valid = (position[:, None] < end) & (channel[None, :] < C)
        if MASKED:
            mask = View(pick(masks, pair), mask_strides[0], mask_strides[1], mask_strides[2])
            valid &= load_tile(mask, sample, position, channel, valid, tl.int32) != 0
        a = load_tile(prediction, sample, position, channel, valid, ACC)
        b = load_tile(target, sample, position, channel, valid, ACC)
        absolute += tl.abs(a - b)
        squared += (a - b) * (a - b)
        seen += valid.to(ACC)
        share = 1 / tl.maximum(seen, 1.0)
        apart_a, apart_b = tl.where(valid, a - mean_a, 0.0), tl.where(valid, b - mean_b, 0.0)
        mean_a += apart_a * share
        mean_b += apart_b * share
        squares += apart_a * (a - mean_a) + apart_b * (b - mean_b)
        squares_d += (apart_a - apart_b) * ((a - mean_a) - (b - mean_b))
    # Each lane has seen some positions. Merge the lanes.
    count = tl.sum(seen, axis=0)
    merged_a = tl.sum(seen * mean_a, axis=0) / tl.maximum(count, 1.0)
    merged_b = tl.sum(seen * mean_b, axis=0) / tl.maximum(count, 1.0)
    mean_a -= merged_a[None, :]
    mean_b -= merged_b[None, :]
    parts, planes = SPLITS, tl.num_programs(0) // (tl.cdiv(C, CHANNELS) * SPLITS) * C
    part, plane = split, (tl.program_id(0) // (tl.cdiv(C, CHANNELS) * SPLITS)) * C + channel
    if BATCH:
        parts, planes = SPLITS * N, planes // N
        part, plane = sample.to(tl.int32) * SPLITS + split, pair * C + channel
    row = parts * planes
    at, inside = workspace + part * planes + plane, channel < C
    tl.store(at, count, mask=inside)
    tl.store(at + row, tl.sum(absolute, axis=0), mask=inside)
    tl.store(at + 2 * row, tl.sum(squared, axis=0), mask=inside)
    tl.store(at + 3 * row, merged_a, mask=inside)
    tl.store(at + 4 * row, merged_b, mask=inside)
    tl.store(at + 5 * row, tl.sum(squares + seen * (mean_a * mean_a + mean_b * mean_b), axis=0), mask=inside)
    mean_a -= mean_b
    tl.store(at + 6 * row, tl.sum(squares_d + seen * mean_a * mean_a, axis=0), mask=inside)

    tl.debug_barrier()  # all threads must have stored before one of them counts this program as arrived
    if tl.atomic_add(arrived, 1) == tl.num_programs(0) - 1:
        _merge(weights, workspace, of_planes, loss, metrics, moments, parts, planes, 1 if BATCH else N, C, ACC)
        tl.store(arrived, 0)


@triton.jit
def _merge(
    weights, workspace, of_planes, loss, metrics, moments, parts, planes, images, C: tl.constexpr, ACC: tl.constexpr
):
    """The moments and metrics of each plane from its parts; then the metrics of each pair, and the loss."""
    row = parts * planes
    for first_plane in range(0, planes, _MERGED_LANES):
        plane = first_plane + tl.arange(0, _MERGED_LANES)
        count = tl.zeros((_MERGED_LANES,), ACC)
        absolute, squared = tl.zeros((_MERGED_LANES,), ACC), tl.zeros((_MERGED_LANES,), ACC)
        sum_a, sum_b = tl.zeros((_MERGED_LANES,), ACC), tl.zeros((_MERGED_LANES,), ACC)
        for first in range(0, parts, _MERGED_PARTS):
            part = first + tl.arange(0, _MERGED_PARTS)
            there = (part[:, None] < parts) & (plane[None, :] < planes)
            at = workspace + part[:, None] * planes + plane[None, :]
            seen = _load_part(at, there)
            count += tl.sum(seen, axis=0)
            absolute += tl.sum(_load_part(at + row, there), axis=0)
            squared += tl.sum(_load_part(at + 2 * row, there), axis=0)
            sum_a += tl.sum(seen * _load_part(at + 3 * row, there), axis=0)
            sum_b += tl.sum(seen * _load_part(at + 4 * row, there), axis=0)
        count = tl.maximum(count, 1.0)
        mean_a, mean_b = sum_a / count, sum_b / count
        squares, squares_d = tl.zeros((_MERGED_LANES,), ACC), tl.zeros((_MERGED_LANES,), ACC)
        for first in range(0, parts, _MERGED_PARTS):
            part = first + tl.arange(0, _MERGED_PARTS)
            there = (part[:, None] < parts) & (plane[None, :] < planes)
            at = workspace + part[:, None] * planes + plane[None, :]
            seen = _load_part(at, there)
            apart_a = _load_part(at + 3 * row, there) - mean_a[None, :]
            apart_b = _load_part(at + 4 * row, there) - mean_b[None, :]
            between = seen * (apart_a * apart_a + apart_b * apart_b)
            squares += tl.sum(_load_part(at + 5 * row, there) + between, axis=0)
            apart_a -= apart_b
            squares_d += tl.sum(_load_part(at + 6 * row, there) + seen * apart_a * apart_a, axis=0)
        variances, variance_d = squares / count, squares_d / count
        inside = plane < planes
        p = (mean_a - mean_b) * (mean_a - mean_b) / (mean_a * mean_a + mean_b * mean_b + _C1)
        r = variance_d / (variances + _C2)
        tl.store(of_planes + plane, absolute / count, mask=inside)
        tl.store(of_planes + planes + plane, squared / count, mask=inside)
        tl.store(of_planes + 2 * planes + plane, p + r - p * r, mask=inside)
        stride = images * C
        at = moments + plane // stride * 5 * stride + plane % stride
        tl.store(at, count, mask=inside)
        tl.store(at + stride, mean_a, mask=inside)
        tl.store(at + 2 * stride, mean_b, mask=inside)
        tl.store(at + 3 * stride, variances, mask=inside)
        tl.store(at + 4 * stride, variance_d, mask=inside)
    tl.debug_barrier()  # the threads that read of_planes are not those that wrote it
    values = planes // images * 3
    total = tl.zeros((_MERGED_LANES,), ACC)
    for first in range(0, values, _MERGED_LANES):
        value = first + tl.arange(0, _MERGED_LANES)
        inside = value < values
        metric, pair = value // C % 3, value // (3 * C)
        mean = tl.zeros((_MERGED_LANES,), ACC)
        for image in range(images):
            mean += tl.load(of_planes + metric * planes + (pair * images + image) * C + value % C, inside, other=0.0)
        mean = mean / images
        tl.store(metrics + value, mean, mask=inside)
        weight = tl.load(weights + value, mask=inside, other=0.0)
        total += tl.where(weight == 0, 0.0, mean * weight)
    tl.store(loss, tl.sum(total, axis=0))


@triton.jit
def _load_part(at, there):
    """A number of each part. Other programs of this launch wrote it, so it comes from the L2 cache that they share."""
    return tl.load(at, mask=there, other=0.0, cache_modifier=".cg")


@triton.jit
def pixel_loss_bwd_kernel(
    grad,  # ()
    predictions,  # a tensor (N, C, H, W) for each pair
    targets,  # as predictions
    masks,  # uint8 tensors, as predictions; or none
    weights,  # (pairs, 3, C)
    moments,  # (pairs, 5, images or 1, C)
    d_predictions,  # as predictions, written
    d_targets,  # as targets, written; or none
    N,
    size,  # H · W
    length,  # positions of a part
    mask_strides,  # of a sample, a position and a channel, the same for all masks
    C: tl.constexpr,
    BATCH: tl.constexpr,
    MASKED: tl.constexpr,
    OF_TARGETS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    SPLITS: tl.constexpr,
    POSITIONS: tl.constexpr,
    CHANNELS: tl.constexpr,
    ACC: tl.constexpr,
):
    pair, sample, _, begin, end, channel = _place(N, C, size, length, SPLITS, POSITIONS, CHANNELS)
    prediction = _image(predictions, pair, size, C, CHANNELS_LAST)
    target = _image(targets, pair, size, C, CHANNELS_LAST)
    inside = channel < C
    images = N
    at = moments + (pair * 5 * N + sample) * C + channel
    if BATCH:
        images, at = 1, moments + pair * 5 * C + channel
    stride = images * C
    count = tl.load(at, mask=inside, other=1.0)
    mean_a, mean_b = tl.load(at + stride, mask=inside, other=0.0), tl.load(at + 2 * stride, mask=inside, other=0.0)
    variances = tl.load(at + 3 * stride, mask=inside, other=0.0)
    variance_d = tl.load(at + 4 * stride, mask=inside, other=0.0)
    share = tl.load(grad) / (images * count)
    of_pair = weights + pair * 3 * C + channel
    w1 = (share * tl.load(of_pair, mask=inside, other=0.0))[None, :]
    w2 = (share * tl.load(of_pair + C, mask=inside, other=0.0))[None, :] * 2
    w3 = share * tl.load(of_pair + 2 * C, mask=inside, other=0.0)
    d_luminance, d_similarity = mean_a * mean_a + mean_b * mean_b + _C1, variances + _C2
    apart, p, r = mean_b - mean_a, (mean_b - mean_a) * (mean_b - mean_a) / d_luminance, variance_d / d_similarity
    # −w₃ · ∂(l·q)/∂a = of_mean_a + of_moments · ((b − μ_b) − (a − μₐ) + r (a − μₐ)); the same with a and b exchanged.
    of_mean_a = (-2 * w3 * (1 - r) * (p * mean_a + apart) / d_luminance)[None, :]
    of_mean_b = (-2 * w3 * (1 - r) * (p * mean_b - apart) / d_luminance)[None, :]
    of_moments = (-2 * w3 * (1 - p) / d_similarity)[None, :]
    # A metric of weight 0 has no gradient, also where it is infinite or NaN.
    squared, similar = (w2 != 0), (w3 != 0)[None, :]
    r, mean_a, mean_b = r[None, :], mean_a[None, :], mean_b[None, :]
    lane = tl.arange(0, POSITIONS)
    for first in range(begin, end, POSITIONS):
        position = first + lane
        within = (position[:, None] < end) & inside[None, :]
        valid = within
        if MASKED:
            mask = View(pick(masks, pair), mask_strides[0], mask_strides[1], mask_strides[2])
            valid &= load_tile(mask, sample, position, channel, within, tl.int32) != 0
        a = load_tile(prediction, sample, position, channel, valid, ACC)
        b = load_tile(target, sample, position, channel, valid, ACC)
        towards = w1 * tl.where(a > b, 1.0, tl.where(a < b, -1.0, 0.0)) + tl.where(squared, w2 * (a - b), 0.0)
        a -= mean_a
        b -= mean_b
        through_ssim = tl.where(similar, of_mean_a + of_moments * (b - a + r * a), 0.0)
        d_a = tl.where(valid, towards + through_ssim, 0.0)
        store_tile(_image(d_predictions, pair, size, C, CHANNELS_LAST), sample, position, channel, within, d_a)
        if OF_TARGETS:
            through_ssim = tl.where(similar, of_mean_b + of_moments * (a - b + r * b), 0.0)
            d_b = tl.where(valid, through_ssim - towards, 0.0)
            store_tile(_image(d_targets, pair, size, C, CHANNELS_LAST), sample, position, channel, within, d_b)


# ---- launches -------------------------------------------------------------------------------------------------------


def forward(
    predictions: Sequence[Tensor],
    targets: Sequence[Tensor],
    masks: Sequence[Tensor],
    weights: Sequence[float],
    batch: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The same as `reference.forward`."""
    return _forward(*predictions, *targets, *masks, pairs=len(predictions), weights=tuple(weights), batch=batch)


@planned()
def _forward(
    *images: Tensor, pairs: int, weights: tuple[float, ...], batch: bool
) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    image = images[0]
    (n, c, _, _), device, accumulator = image.shape, image.device, accumulator_of(image)
    each = 1 if batch else n  # moments of a pair and channel
    new_loss = maker((), accumulator, device)
    new_metrics = maker((pairs, len(METRICS), c), accumulator, device)
    new_moments = maker((pairs, len(Moments._fields), each, c), accumulator, device)
    if image.numel() == 0:
        return lambda *_: (new_loss().zero_(), new_metrics().zero_(), new_moments().zero_())

    read, programs, sizes, options = _launch(images, pairs, weights, batch)
    launch = BoundLaunch(programs, sizes, options | {"maxnreg": PIXEL_REGISTERS})
    parts, planes = options["SPLITS"] * (n if batch else 1), pairs * each * c
    new_workspace = maker((PARTIAL_ROWS, parts, planes), accumulator, device)
    new_of_planes = maker((len(METRICS), planes), accumulator, device)

    def run(*images):
        written = new_loss(), new_metrics(), new_moments()
        partial = new_workspace(), new_of_planes(), arrivals(device)
        launch(pixel_loss_fwd_kernel, *read(images), *partial, *written)
        return written

    return run


def backward(
    grad: Tensor,
    predictions: Sequence[Tensor],
    targets: Sequence[Tensor],
    masks: Sequence[Tensor],
    weights: Sequence[float],
    moments: Tensor,
    batch: bool,
    of_targets: bool,
) -> list[Tensor]:
    """The same as `reference.backward`."""
    return _backward(
        grad,
        moments,
        *predictions,
        *targets,
        *masks,
        pairs=len(predictions),
        weights=tuple(weights),
        batch=batch,
        of_targets=of_targets,
    )


@planned()
def _backward(
    grad: Tensor,
    moments: Tensor,
    *images: Tensor,
    pairs: int,
    weights: tuple[float, ...],
    batch: bool,
    of_targets: bool,
) -> Callable[..., list[Tensor]]:
    device, count = images[0].device, 2 * pairs if of_targets else pairs
    if images[0].numel() == 0:
        return lambda _grad, _moments, *images: [torch.empty_like(image) for image in images[:count]]

    read, programs, sizes, options = _launch(images, pairs, weights, batch)
    launch = BoundLaunch(programs, sizes, options | {"OF_TARGETS": of_targets})
    predictions, targets, *_ = read(images)
    written = [torch.empty_like(image, device="meta") for image in (*predictions, *targets)[:count]]
    wanted = [torch.empty_like(image, device="meta") for image in images[:count]]
    fits = [
        ours.dtype == theirs.dtype and ours.stride() == theirs.stride()
        for ours, theirs in zip(written, wanted, strict=True)
    ]
    makers = [
        functools.partial(torch.empty_strided, image.shape, image.stride(), dtype=image.dtype, device=device)
        for image in written
    ]

    def run(grad, moments, *images):
        gradients = tuple([make() for make in makers])
        of_pairs = gradients[:pairs], gradients[pairs:]
        launch(pixel_loss_bwd_kernel, grad, *read(images), moments.contiguous(), *of_pairs)
        return [
            gradient if fit else torch.empty_like(image).copy_(gradient)
            for fit, image, gradient in zip(fits, images, gradients, strict=False)
        ]

    return run


def _launch(
    images: Sequence[Tensor], pairs: int, weights: tuple[float, ...], batch: bool
) -> tuple[Callable[[Sequence[Tensor]], tuple[Any, ...]], int, tuple[Any, ...], dict[str, Any]]:
    """A function of the images to what both kernels read; the programs; sizes and strides; options."""
    (n, c, h, w), device = images[0].shape, images[0].device
    layout, accumulator = output_layout(images[0]), accumulator_of(images[0])
    channels_last = layout == torch.channels_last
    cut = stream(pairs * n * c, h * w, c, channels_last, accumulator.itemsize, heavy=True)
    read_predictions, read_targets = (
        _alike(of_pairs, layout) for of_pairs in (images[:pairs], images[pairs : 2 * pairs])
    )
    masks = images[2 * pairs :]
    copied = len({mask.stride() for mask in masks}) > 1 or any(mask.stride(2) != w * mask.stride(3) for mask in masks)
    mask_strides = (0, 0, 0)
    if masks:
        mask = masks[0].contiguous() if copied else masks[0]
        mask_strides = (mask.stride(0), mask.stride(3), mask.stride(1))

    def read(images):
        masks = tuple([mask.view(torch.uint8) for mask in images[2 * pairs :]])
        if copied:
            masks = tuple([mask.contiguous() for mask in masks])
        predictions, targets = read_predictions(images[:pairs]), read_targets(images[pairs : 2 * pairs])
        return predictions, targets, masks, constants(weights, device, accumulator)

    options = {
        "C": c,
        "BATCH": batch,
        "MASKED": bool(masks),
        "CHANNELS_LAST": channels_last,
        "SPLITS": cut.splits,
        "POSITIONS": cut.tile.positions,
        "CHANNELS": cut.tile.channels,
        "ACC": TRITON_TYPES[accumulator],
        "num_warps": cut.tile.warps,
    }
    programs = pairs * n * triton.cdiv(c, cut.tile.channels) * cut.splits
    return read, programs, (n, h * w, cut.length(h * w), mask_strides), options


def _alike(images: Sequence[Tensor], layout: torch.memory_format) -> Callable[[Sequence[Tensor]], tuple[Tensor, ...]]:
    """A function that gives images one dtype and layout. A tuple of pointers has one type, and images share strides."""
    dtype = functools.reduce(torch.promote_types, (image.dtype for image in images))
    if all(image.dtype == dtype and image.is_contiguous(memory_format=layout) for image in images):
        return tuple
    return lambda images: tuple([image.to(dtype).contiguous(memory_format=layout) for image in images])
