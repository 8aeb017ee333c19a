"""Triton kernels of the instance norm. The docstring of `vologan_kernels.instance_norm` states the mathematics.

`device_functions.py` has the functions that they share.

**Three tiers.** If a plane fits the registers of a program, one kernel makes the forward (`single_fwd_kernel`) and one
makes the backward (`single_bwd_kernel`). They read the plane once; a forward with padding reads it twice. A larger
plane is cut into parts. Then the forward and the backward have two kernels each:

1. `statistics_kernel` or `sums_kernel` reads each part and writes its sums to a workspace;
2. `apply_fwd_kernel` or `apply_bwd_kernel` merges the sums of a plane, reads the plane again and writes the result.

In the second kernel every program of a plane merges the sums of all parts for itself. There are few parts, and a third
launch would take longer. It walks through its part backwards, because the L2 cache holds what was read last.

With `launch.ONE_LAUNCH`, `persistent_fwd_kernel` or `persistent_bwd_kernel` does both in one launch. All its programs
run at once, and go from unit to unit: a unit is the planes of some channels of a sample. A program reads its part of a
unit, and then finishes its part of the unit before. The last program that has read a part of a unit merges all its
parts. The others wait for it at an atomic counter.

The order of all sums is fixed. So the same input gives the same bits on the same kind of GPU.

**Loads in flight.** A loop reads its tiles by asynchronous copies to shared memory, STAGES tiles ahead. Without them, a
load would wait until the tile before it is used.

**Reflection padding** only maps indices. In the forward, each position of the output reads one position of the input.
In the backward, each position of the input adds up the gradients of up to nine positions of the output.

**Arithmetic** is in the type ACC, which is float32 or float64. ε and the other numbers are compile-time constants,
which Triton converts to ACC. Each lane computes the variance of its values by Welford's algorithm, and so does each
lane that merges parts. Then Chan's formula merges the lanes (Chan, Golub, LeVeque, 1983). The rounded mean leaves a
rest, which is the mean of the deviations. It is added too. So no digits are lost if the mean is far larger than the
deviation, and a constant plane gives β.

**Arguments.** An image is a `layouts.View`: a pointer and three strides. Names in capital letters are sizes and
compile-time constants. A tile is a block of values (positions, channels).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from vologan_kernels import launch
from vologan_kernels.activations_triton import activate, gradient
from vologan_kernels.device import arrivals, multiprocessors
from vologan_kernels.instance_norm.device_functions import (
    Affine,
    Norm,
    Statistics,
    add_rows,
    add_samples,
    arrive,
    load_upstream,
    merge_parts,
    norm_of,
    normalised,
    parameters_of,
    place_of,
    program_place,
    publish,
    statistics_of_part,
    store_rows,
    store_statistics,
    sums_of_part,
    wait,
    write_gradients,
    write_outputs,
)
from vologan_kernels.launch import ADD_CHANNELS, ADD_LANES, MOST_REGISTERS, Stream, Tile, single_tile, stream
from vologan_kernels.layouts import View, maker, output_layout, view_like
from vologan_kernels.planned_triton import BoundLaunch, planned
from vologan_kernels.precision import accumulator_of
from vologan_kernels.tiles_triton import TRITON_TYPES, load_tile, store_tile

# ---- planes that fit a program --------------------------------------------------------------------------------------


@triton.jit
def _mask_of(position, size, inside, WHOLE: tl.constexpr):
    """Which values of a tile exist. If the planes fill it, only channels may be missing, whose values go nowhere."""
    if WHOLE:
        return (position >= 0)[:, None] & inside[None, :]
    else:
        return (position < size)[:, None] & inside[None, :]


@triton.jit
def _of_plane(values, mask, WHOLE: tl.constexpr):
    """The values, and 0 outside of the planes."""
    if WHOLE:
        return values
    else:
        return tl.where(mask, values, 0.0)


@triton.jit
def single_fwd_kernel(
    x,  # view (N, C, H, W)
    residual,  # view as x, or None
    y,  # view (N, C, H + 2·PAD, W + 2·PAD), written
    affine,
    statistics,  # written
    C,
    H,
    W,
    ACTIVATION: tl.constexpr,
    EPS: tl.constexpr,
    SLOPE: tl.constexpr,
    MIN_SCALE: tl.constexpr,
    PAD: tl.constexpr,
    WHOLE: tl.constexpr,  # whether the planes fill their tile
    POSITIONS: tl.constexpr,
    CHANNELS: tl.constexpr,
    ACC: tl.constexpr,
):
    place = program_place(C, 1, CHANNELS)
    sample, channel = place.sample, place.channel
    position = tl.arange(0, POSITIONS)
    mask = _mask_of(position, H * W, place.inside, WHOLE)
    values = load_tile(x, sample, position, channel, mask, ACC)
    count = tl.full((), H * W, ACC)
    mean = (tl.sum(values, axis=0) / count)[None, :]
    deviation = _of_plane(values - mean, mask, WHOLE)
    rest = (tl.sum(deviation, axis=0) / count)[None, :]  # of the mean: what rounding left out
    mean += rest
    deviation = _of_plane(deviation - rest, mask, WHOLE)
    rstd = (1 / tl.sqrt(tl.sum(deviation * deviation, axis=0) / count + EPS))[None, :]
    plane = (sample * C + channel)[None, :]
    tl.store(statistics.mean + plane, mean, mask=place.inside[None, :])
    tl.store(statistics.rstd + plane, rstd, mask=place.inside[None, :])

    norm = Norm(mean, rstd, *parameters_of(affine, place, SLOPE, MIN_SCALE, ACC))
    if PAD == 0:
        u = deviation * (rstd * norm.gamma) + norm.beta
        if residual is not None:
            u += load_tile(residual, sample, position, channel, mask, ACC)
        store_tile(y, sample, position, channel, mask, activate(u, norm.slope, ACTIVATION))
    else:  # the borders need values that other threads hold: read the plane again
        outputs = (H + 2 * PAD) * (W + 2 * PAD)
        write_outputs(x, residual, y, place, norm, 0, outputs, H, W, ACTIVATION, PAD, POSITIONS, 1, ACC)


@triton.jit
def single_bwd_kernel(
    grad,  # view (N, C, H + 2·PAD, W + 2·PAD)
    saved,  # if FROM_OUTPUT: view of y, as grad; else: view of x (N, C, H, W)
    residual,  # view (N, C, H, W), or None
    dx,  # view (N, C, H, W), written
    d_residual,  # pointer to a tensor with the strides of dx, written; or None
    affine,
    statistics,
    gradients,  # of `affine`, written if N is 1
    sums,  # (ROWS, N, C), written if N is not 1: Σg, Σg·x̂ and, for prelu, the sum of the slope's gradient
    N,
    C,
    H,
    W,
    ACTIVATION: tl.constexpr,
    SLOPE: tl.constexpr,
    MIN_SCALE: tl.constexpr,
    FROM_OUTPUT: tl.constexpr,
    PAD: tl.constexpr,
    ROWS: tl.constexpr,
    WHOLE: tl.constexpr,  # whether the planes fill their tile
    POSITIONS: tl.constexpr,
    CHANNELS: tl.constexpr,
    ACC: tl.constexpr,
):
    place = program_place(C, 1, CHANNELS)
    sample, channel, inside = place.sample, place.channel, place.inside
    position = tl.arange(0, POSITIONS)
    mask = _mask_of(position, H * W, inside, WHOLE)
    norm = norm_of(statistics, affine, place, C, SLOPE, MIN_SCALE, ACC)
    x_hat, u = normalised(saved, residual, place, norm, position, mask, W, ACTIVATION, FROM_OUTPUT, PAD, ACC)
    upstream = load_upstream(grad, place, 0, position, mask, H, W, PAD, POSITIONS, ACC)
    g = _of_plane(gradient(upstream, u, norm.slope, ACTIVATION), mask, WHOLE)
    sum_g = tl.sum(g, axis=0)
    sum_gx = tl.sum(_of_plane(g * x_hat, mask, WHOLE), axis=0)
    below = sum_g
    if ROWS == 3:
        below = tl.sum(_of_plane(tl.where(u > 0, 0.0, upstream * u), mask, WHOLE), axis=0)
    if N == 1:  # which is a compile-time constant then
        store_rows(gradients.bias, gradients.weight, gradients.slopes, sum_g, sum_gx, below, channel, inside, ROWS)
    else:
        plane = tl.full((), N, tl.int64) * C
        row = sums + sample * C
        store_rows(row, row + plane, row + 2 * plane, sum_g, sum_gx, below, channel, inside, ROWS)
    count = tl.full((), H * W, ACC)
    centred = g - (sum_g / count)[None, :] - x_hat * (sum_gx / count)[None, :]
    store_tile(dx, sample, position, channel, mask, norm.gamma * norm.rstd * centred)
    if d_residual is not None:
        of_residual = View(d_residual, dx.stride_n, dx.stride_p, dx.stride_c)
        store_tile(of_residual, sample, position, channel, mask, g)


@triton.jit
def add_samples_kernel(
    gradients,  # of `affine`, written
    sums,  # (ROWS, N, C), of single_bwd_kernel
    N,
    C,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
    CHANNELS: tl.constexpr,
    ACC: tl.constexpr,
):
    add_samples(
        gradients,
        sums,
        tl.full((), N, tl.int32),
        program_place(C, 1, CHANNELS),
        C,
        ROWS,
        LANES,
        CHANNELS,
        ACC,
    )


# ---- planes in parts, two launches -----------------------------------------------------------------------------------


@triton.jit
def statistics_kernel(
    x,  # view (N, C, H, W)
    workspace,  # (N, SPLITS, 2, C), written
    C,
    H,
    W,
    length,  # positions of a part
    SPLITS: tl.constexpr,
    POSITIONS: tl.constexpr,
    CHANNELS: tl.constexpr,
    STAGES: tl.constexpr,
    ACC: tl.constexpr,
):
    place = program_place(C, SPLITS, CHANNELS)
    statistics_of_part(x, workspace, place, C, H * W, length, SPLITS, POSITIONS, CHANNELS, STAGES, ACC)


@triton.jit
def apply_fwd_kernel(
    x,  # view (N, C, H, W)
    residual,  # view as x, or None
    y,  # view (N, C, H + 2·PAD, W + 2·PAD), written
    affine,
    statistics,  # written
    workspace,  # of statistics_kernel
    C,
    H,
    W,
    length,  # positions of a part of x
    outputs,  # positions of the padded output
    outputs_length,  # positions of a part of it
    ACTIVATION: tl.constexpr,
    EPS: tl.constexpr,
    SLOPE: tl.constexpr,
    MIN_SCALE: tl.constexpr,
    PAD: tl.constexpr,
    SPLITS: tl.constexpr,
    LANES: tl.constexpr,
    POSITIONS: tl.constexpr,
    CHANNELS: tl.constexpr,
    STAGES: tl.constexpr,
    ACC: tl.constexpr,
):
    place = program_place(C, SPLITS, CHANNELS)
    size = tl.full((), H * W, tl.int32)
    mean, rstd = merge_parts(workspace, place, C, size, length, EPS, SPLITS, LANES, CHANNELS, ACC)
    if place.split == 0:
        store_statistics(statistics, mean, rstd, place, C)
    norm = Norm(mean[None, :], rstd[None, :], *parameters_of(affine, place, SLOPE, MIN_SCALE, ACC))
    begin = place.split * outputs_length
    end = tl.minimum(begin + outputs_length, outputs)
    write_outputs(x, residual, y, place, norm, begin, end, H, W, ACTIVATION, PAD, POSITIONS, STAGES, ACC)


@triton.jit
def sums_kernel(
    grad,  # view (N, C, H + 2·PAD, W + 2·PAD)
    saved,  # if FROM_OUTPUT: view of y, as grad; else: view of x (N, C, H, W)
    residual,  # view (N, C, H, W), or None
    affine,
    statistics,
    sums,  # (ROWS, N · SPLITS, C), written: the sums of single_bwd_kernel over each part
    parts,  # N · SPLITS
    C,
    H,
    W,
    length,  # positions of a part
    ACTIVATION: tl.constexpr,
    SLOPE: tl.constexpr,
    MIN_SCALE: tl.constexpr,
    FROM_OUTPUT: tl.constexpr,
    PAD: tl.constexpr,
    ROWS: tl.constexpr,
    SPLITS: tl.constexpr,
    POSITIONS: tl.constexpr,
    CHANNELS: tl.constexpr,
    STAGES: tl.constexpr,
    ACC: tl.constexpr,
):
    place = program_place(C, SPLITS, CHANNELS)
    sums_of_part(
        *(grad, saved, residual, affine, statistics, sums, parts, place, C, H, W, length),
        *(ACTIVATION, SLOPE, MIN_SCALE, FROM_OUTPUT, PAD, ROWS, SPLITS, POSITIONS, CHANNELS, STAGES, ACC),
    )


@triton.jit
def apply_bwd_kernel(
    grad,  # view (N, C, H + 2·PAD, W + 2·PAD)
    saved,  # if FROM_OUTPUT: view of y, as grad; else: view of x (N, C, H, W)
    residual,  # view (N, C, H, W), or None
    dx,  # view (N, C, H, W), written
    d_residual,  # pointer to a tensor with the strides of dx, written; or None
    affine,
    statistics,
    gradients,  # of `affine`, written
    sums,  # of sums_kernel
    parts,  # N · SPLITS
    C,
    H,
    W,
    length,  # positions of a part
    ACTIVATION: tl.constexpr,
    SLOPE: tl.constexpr,
    MIN_SCALE: tl.constexpr,
    FROM_OUTPUT: tl.constexpr,
    PAD: tl.constexpr,
    ROWS: tl.constexpr,
    SPLITS: tl.constexpr,
    LANES: tl.constexpr,
    POSITIONS: tl.constexpr,
    CHANNELS: tl.constexpr,
    STAGES: tl.constexpr,
    ACC: tl.constexpr,
):
    place = program_place(C, SPLITS, CHANNELS)
    first = place.sample * SPLITS
    sum_g, sum_gx, _ = add_rows(sums, parts, first, first + SPLITS, place, C, 2, LANES, CHANNELS, ACC)
    if (place.sample == 0) & (place.split == 0):
        add_samples(gradients, sums, parts, place, C, ROWS, LANES, CHANNELS, ACC)
    norm = norm_of(statistics, affine, place, C, SLOPE, MIN_SCALE, ACC)
    write_gradients(
        *(grad, saved, residual, dx, d_residual, norm, sum_g, sum_gx, place, H, W, length),
        *(ACTIVATION, FROM_OUTPUT, PAD, POSITIONS, STAGES, ACC),
    )


# ---- planes in parts, one launch ------------------------------------------------------------------------------------


@triton.jit
def persistent_fwd_kernel(
    x,  # view (N, C, H, W)
    residual,  # view as x, or None
    y,  # view (N, C, H + 2·PAD, W + 2·PAD), written
    affine,
    statistics,  # written
    workspace,  # (N, SPLITS, 2, C), written
    arrived,  # (units,): the programs that have come to a barrier; 0 before and after
    units,  # samples times blocks of channels
    C,
    H,
    W,
    length,  # positions of a part of x
    outputs,  # positions of the padded output
    outputs_length,  # positions of a part of it
    ACTIVATION: tl.constexpr,
    EPS: tl.constexpr,
    SLOPE: tl.constexpr,
    MIN_SCALE: tl.constexpr,
    PAD: tl.constexpr,
    SPLITS: tl.constexpr,
    LANES: tl.constexpr,
    POSITIONS: tl.constexpr,
    CHANNELS: tl.constexpr,
    STAGES: tl.constexpr,
    ACC: tl.constexpr,
):
    at_once = tl.num_programs(0) // SPLITS
    split = tl.program_id(0) // at_once
    size = tl.full((), H * W, tl.int32)
    for unit in tl.range(tl.program_id(0) % at_once, units + at_once, at_once, disable_licm=True):
        if unit < units:
            part = place_of(unit, split, C, CHANNELS)
            statistics_of_part(x, workspace, part, C, size, length, SPLITS, POSITIONS, CHANNELS, STAGES, ACC)
            if arrive(arrived + unit, SPLITS):
                mean, rstd = merge_parts(workspace, part, C, size, length, EPS, SPLITS, LANES, CHANNELS, ACC)
                store_statistics(statistics, mean, rstd, part, C)
                publish(arrived + unit)
        before = unit - at_once
        if before >= 0:
            wait(arrived + before, SPLITS)
            place = place_of(before, split, C, CHANNELS)
            norm = norm_of(statistics, affine, place, C, SLOPE, MIN_SCALE, ACC)
            begin = split * outputs_length
            end = tl.minimum(begin + outputs_length, outputs)
            write_outputs(x, residual, y, place, norm, begin, end, H, W, ACTIVATION, PAD, POSITIONS, STAGES, ACC)


@triton.jit
def persistent_bwd_kernel(
    grad,  # view (N, C, H + 2·PAD, W + 2·PAD)
    saved,  # if FROM_OUTPUT: view of y, as grad; else: view of x (N, C, H, W)
    residual,  # view (N, C, H, W), or None
    dx,  # view (N, C, H, W), written
    d_residual,  # pointer to a tensor with the strides of dx, written; or None
    affine,
    statistics,
    gradients,  # of `affine`, written if N is 1
    sums,  # (ROWS, N, C), written
    N,
    workspace,  # (ROWS, N · SPLITS, C), written
    parts,  # N · SPLITS
    arrived,  # (units,): the programs that have come to a barrier; 0 before and after
    units,  # samples times blocks of channels
    C,
    H,
    W,
    length,  # positions of a part
    ACTIVATION: tl.constexpr,
    SLOPE: tl.constexpr,
    MIN_SCALE: tl.constexpr,
    FROM_OUTPUT: tl.constexpr,
    PAD: tl.constexpr,
    ROWS: tl.constexpr,
    SPLITS: tl.constexpr,
    LANES: tl.constexpr,
    POSITIONS: tl.constexpr,
    CHANNELS: tl.constexpr,
    STAGES: tl.constexpr,
    ACC: tl.constexpr,
):
    at_once = tl.num_programs(0) // SPLITS
    split = tl.program_id(0) // at_once
    plane = tl.full((), N, tl.int64) * C
    for unit in tl.range(tl.program_id(0) % at_once, units + at_once, at_once, disable_licm=True):
        if unit < units:
            part = place_of(unit, split, C, CHANNELS)
            sums_of_part(
                *(grad, saved, residual, affine, statistics, workspace, parts, part, C, H, W, length),
                *(ACTIVATION, SLOPE, MIN_SCALE, FROM_OUTPUT, PAD, ROWS, SPLITS, POSITIONS, CHANNELS, STAGES, ACC),
            )
            if arrive(arrived + unit, SPLITS):
                first = part.sample * SPLITS
                g, gx, below = add_rows(workspace, parts, first, first + SPLITS, part, C, ROWS, LANES, CHANNELS, ACC)
                row = sums + part.sample * C
                store_rows(row, row + plane, row + 2 * plane, g, gx, below, part.channel, part.inside, ROWS)
                if N == 1:
                    rows = gradients
                    store_rows(rows.bias, rows.weight, rows.slopes, g, gx, below, part.channel, part.inside, ROWS)
                publish(arrived + unit)
        before = unit - at_once
        if before >= 0:
            wait(arrived + before, SPLITS)
            place = place_of(before, split, C, CHANNELS)
            row = sums + place.sample * C + place.channel
            sum_g = tl.load(row, mask=place.inside, other=0.0, cache_modifier=".cg")
            sum_gx = tl.load(row + plane, mask=place.inside, other=0.0, cache_modifier=".cg")
            norm = norm_of(statistics, affine, place, C, SLOPE, MIN_SCALE, ACC)
            write_gradients(
                *(grad, saved, residual, dx, d_residual, norm, sum_g, sum_gx, place, H, W, length),
                *(ACTIVATION, FROM_OUTPUT, PAD, POSITIONS, STAGES, ACC),
            )


# ---- launches -------------------------------------------------------------------------------------------------------


@planned(tensors=5)
def forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    slopes: Tensor | None,
    residual: Tensor | None,
    eps: float,
    activation: str,
    negative_slope: float,
    reflection_pad: int,
    min_scale: float,
) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """The same as `reference.forward`."""
    (n, c, h, w), device = x.shape, x.device
    layout, accumulator = output_layout(x), accumulator_of(x)
    shape = n, c, h + 2 * reflection_pad, w + 2 * reflection_pad
    written = torch.empty(shape, device="meta", memory_format=layout)
    view_x, view_residual, view_y = (view_like(image, layout) for image in (x, residual, written))
    new_y, new_statistic = maker(shape, x.dtype, device, layout), maker((n, c), accumulator, device)
    options: dict[str, Any] = {
        "ACTIVATION": activation,
        "EPS": eps,
        "SLOPE": negative_slope,
        "MIN_SCALE": min_scale,
        "PAD": reflection_pad,
        "ACC": TRITON_TYPES[accumulator],
    }
    like = n * c, h * w, c, layout == torch.channels_last, x.element_size()
    outputs, tensors = shape[2] * shape[3], 1 if residual is None else 2
    if x.numel() == 0:

        def launch_all(*arguments):
            pass

    elif tile := single_tile(*like[1:]):
        options |= _single(tile, h * w)
        single = BoundLaunch(n * triton.cdiv(c, tile.channels), (c, h, w), options)

        def launch_all(*arguments):
            single(single_fwd_kernel, *arguments)

    elif _in_one_launch(persistent_fwd_kernel):
        cut, programs = launch.persistent(*like, tensors=tensors, multiprocessors=multiprocessors(device))
        units = n * triton.cdiv(c, cut.tile.channels)
        numbers = units, c, h, w, cut.length(h * w), outputs, cut.length(outputs)
        options |= {"LANES": cut.lanes, "STAGES": cut.stages(tensors)} | _shape(cut) | _TOGETHER
        persistent = BoundLaunch(programs, numbers, options)
        new_workspace = maker((n, cut.splits, 2, c), accumulator, device)

        def launch_all(*arguments):
            persistent(persistent_fwd_kernel, *arguments, new_workspace(), arrivals(device, units))

    else:
        cut = stream(*like, multiprocessors=multiprocessors(device))
        programs, sizes = _programs(cut, n, c), (c, h, w, cut.length(h * w))
        reading = {"ACC": options["ACC"], "STAGES": cut.stages(1)} | _shape(cut)
        options |= {"LANES": cut.lanes, "STAGES": cut.stages(tensors)} | _shape(cut)
        statistics = BoundLaunch(programs, sizes, reading)
        apply = BoundLaunch(programs, (*sizes, outputs, cut.length(outputs)), options)
        new_workspace = maker((n, cut.splits, 2, c), accumulator, device)

        def launch_all(*arguments):
            workspace = new_workspace()
            statistics(statistics_kernel, arguments[0], workspace)
            apply(apply_fwd_kernel, *arguments, workspace)

    affine = _affine_like(weight, bias, slopes)

    def run(x, weight, bias, slopes, residual):
        y, mean, rstd = new_y(), new_statistic(), new_statistic()
        images = view_x(x), view_residual(residual), view_y(y)
        launch_all(*images, affine(weight, bias, slopes), Statistics(mean, rstd))
        return y, mean, rstd

    return run


@planned(tensors=8)
def backward(
    grad: Tensor,
    saved: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    slopes: Tensor | None,
    residual: Tensor | None,
    activation: str,
    negative_slope: float,
    reflection_pad: int,
    min_scale: float,
    from_output: bool,
) -> Callable[..., tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]]:
    """The same as `reference.backward`, but the gradients of x and of the residual have x's dtype.

    The gradients of the slopes and of the residual are None without them.
    """
    (n, c, h, w), device = grad.shape, saved.device
    h, w = h - 2 * reflection_pad, w - 2 * reflection_pad
    layout, accumulator = output_layout(saved), accumulator_of(saved)
    written = torch.empty((n, c, h, w), device="meta", memory_format=layout)
    view_grad, view_saved, view_residual, view_dx = (
        view_like(image, layout) for image in (grad, saved, residual, written)
    )
    new_dx, new_gradient = maker((n, c, h, w), saved.dtype, device, layout), maker((c,), accumulator, device)
    affine = _affine_like(weight, bias, slopes)
    rows = 2 if slopes is None else 3

    options: dict[str, Any] = {
        "ACTIVATION": activation,
        "SLOPE": negative_slope,
        "MIN_SCALE": min_scale,
        "FROM_OUTPUT": from_output,
        "PAD": reflection_pad,
        "ROWS": rows,
        "ACC": TRITON_TYPES[accumulator],
    }
    like = n * c, h * w, c, layout == torch.channels_last, saved.element_size()
    heavy = reflection_pad > 0 or activation in ("prelu", "gelu")
    tensors = 2 if residual is None else 3
    new_sums = maker((rows, n, c), accumulator, device)
    adding = {"ROWS": rows, "LANES": ADD_LANES, "CHANNELS": ADD_CHANNELS, "ACC": options["ACC"]}
    add = BoundLaunch(triton.cdiv(c, ADD_CHANNELS), (n, c), adding)
    if grad.numel() == 0:

        def launch_all(read, written, parameters, gradients):
            for gradient in gradients:
                if gradient is not None:
                    gradient.zero_()

    elif tile := single_tile(*like[1:], backward=True, pad=reflection_pad):
        options |= _single(tile, h * w) | {"maxnreg": MOST_REGISTERS}  # else ptxas spills to use fewer
        single = BoundLaunch(n * triton.cdiv(c, tile.channels), (n, c, h, w), options)

        def launch_all(read, written, parameters, gradients):
            sums = None if n == 1 else new_sums()
            single(single_bwd_kernel, *read, *written, *parameters, gradients, sums)
            if n > 1:
                add(add_samples_kernel, gradients, sums)

    elif _in_one_launch(persistent_bwd_kernel):
        cut, programs = launch.persistent(*like, tensors=tensors, multiprocessors=multiprocessors(device))
        units, parts = n * triton.cdiv(c, cut.tile.channels), n * cut.splits
        options |= {"LANES": cut.lanes, "STAGES": cut.stages(3)} | _shape(cut) | _TOGETHER  # more would spill
        persistent = BoundLaunch(programs, (units, c, h, w, cut.length(h * w)), options)
        new_workspace = maker((rows, parts, c), accumulator, device)

        def launch_all(read, written, parameters, gradients):
            sums = new_sums()
            work = gradients, sums, n, new_workspace(), parts, arrivals(device, units)
            persistent(persistent_bwd_kernel, *read, *written, *parameters, *work)
            if n > 1:
                add(add_samples_kernel, gradients, sums)

    else:
        cut = stream(*like, heavy=heavy, multiprocessors=multiprocessors(device))
        programs, parts = _programs(cut, n, c), n * cut.splits
        sizes = parts, c, h, w, cut.length(h * w)
        options |= {"STAGES": cut.stages(tensors), "maxnreg": MOST_REGISTERS} | _shape(cut)
        sum_parts = BoundLaunch(programs, sizes, options)
        apply = BoundLaunch(programs, sizes, options | {"LANES": cut.lanes})
        new_workspace = maker((rows, parts, c), accumulator, device)

        def launch_all(read, written, parameters, gradients):
            workspace = new_workspace()
            sum_parts(sums_kernel, *read, *parameters, workspace)
            apply(apply_bwd_kernel, *read, *written, *parameters, gradients, workspace)

    def run(grad, saved, mean, rstd, weight, bias, slopes, residual):
        dx, d_residual = new_dx(), None if residual is None else new_dx()
        gradients = Affine(new_gradient(), new_gradient(), None if slopes is None else new_gradient())
        read = view_grad(grad), view_saved(saved), view_residual(residual)
        parameters = affine(weight, bias, slopes), Statistics(mean.contiguous(), rstd.contiguous())
        launch_all(read, (view_dx(dx), d_residual), parameters, gradients)
        return dx, *gradients, d_residual

    return run


_TOGETHER = {"launch_cooperative_grid": True, "maxnreg": MOST_REGISTERS}
"""Options of a launch whose programs wait for each other. CUDA refuses it if they do not fit on the GPU at once."""


def _in_one_launch(kernel: Any) -> bool:
    """Whether large planes take one launch each way.

    In Triton's interpreter they never do: it runs one program after the other, so a program that waits for a later one
    would wait forever.
    """
    if not launch.ONE_LAUNCH:
        return False
    from triton.runtime.interpreter import InterpretedFunction  # here, because nothing else needs it

    return not isinstance(kernel, InterpretedFunction)


def _affine_like(*parameters: Tensor | None) -> Callable[..., Affine]:
    """A function of γ, β and slopes that lie as `parameters`. The kernels read dense ones."""
    if all(parameter is None or parameter.is_contiguous() for parameter in parameters):
        return Affine
    return lambda *given: Affine(*(None if parameter is None else parameter.contiguous() for parameter in given))


def _single(tile: Tile, positions: int) -> dict[str, Any]:
    return {
        "WHOLE": tile.positions == positions,
        "POSITIONS": tile.positions,
        "CHANNELS": tile.channels,
        "num_warps": tile.warps,
    }


def _programs(cut: Stream, n: int, c: int) -> int:
    """The programs of a streaming kernel: one for each part of the planes of some channels."""
    return n * cut.splits * triton.cdiv(c, cut.tile.channels)


def _shape(cut: Stream) -> dict[str, int]:
    tile = cut.tile
    return {
        "SPLITS": cut.splits,
        "POSITIONS": tile.positions,
        "CHANNELS": tile.channels,
        "num_warps": tile.warps,
    }
