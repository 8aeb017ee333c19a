"""Triton kernels of the spectral norm. The docstring of `vologan_kernels.spectral_norm` states the mathematics.

Each launch serves all layers of a model.

Forward:

1. `rows_kernel` computes t = W v; a program takes a block of rows;
2. `columns_kernel` computes s = Wᵀu, and with it ‖t‖ and u; a program takes a block of columns;
3. `normalise_kernel` computes ‖s‖, v, σ and Ŵ; a program takes a block of rows.

Backward:

1. `inner_kernel` sums G · Ŵ over a block of rows;
2. `gradient_kernel` adds up the sums of its layer and writes ∂L/∂W.

Each program of a layer computes the norms and sums of the whole layer again, always in the same order. So there are no
atomics, and the same input gives the same bits.

The kernels find the tensors in a table (`pointer_table.py`). A row of it has these int64 columns:

    0        address of the weight, or of G
    1, 2     addresses of the u and v that are kept
    3 … 10   `memory.Layout`
    11       start of Ŵ in the memory that all share
    12       start of u among all vectors; v follows it
    13       number of the layer among the σ
    14       start of ∂L/∂W
    15       first program of the layer, which is also the place of its sum

Tiles follow the matrix in the order in which it lies in memory. A row may start at any address, so a thread loads one
element at a time. The loads of a warp lie side by side.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from vologan_kernels.layouts import lying_as
from vologan_kernels.planned_triton import BoundLaunch, planned
from vologan_kernels.pointer_table import PointerTable, pieces
from vologan_kernels.precision import accumulator_of
from vologan_kernels.spectral_norm.memory import ALIGNMENT, Layout, layout_of, padded, starts, strides_of, vectors_size
from vologan_kernels.spectral_norm.reference import EPS
from vologan_kernels.tiles_triton import TRITON_TYPES

FIELDS = tl.constexpr(16)
ROWS, COLUMNS = 8, 128
"""A tile that goes along the columns: 8 elements a thread of 4 warps. If rows lie side by side, 8 fill a sector."""
DEEP_ROWS, FEW_COLUMNS = 16, 64
"""A tile that goes along the rows: 72 programs for a 3×3 convolution from 512 channels."""

# ---- parts of kernels -----------------------------------------------------------------------------------------------


@triton.jit
def _layout(row):
    """The layout of a matrix, from its row of the table."""
    return Layout(
        rows=tl.load(row + 3).to(tl.int32),
        columns=tl.load(row + 4).to(tl.int32),
        inner=tl.load(row + 5).to(tl.int32),
        stride_row=tl.load(row + 6),
        stride_outer=tl.load(row + 7),
        stride_inner=tl.load(row + 8),
        outer=tl.load(row + 9),
        step=tl.load(row + 10),
    )


@triton.jit
def _tile(layout, row, column):
    """Return the offsets of the elements of a tile, whether they exist, and the numbers of its columns in v.

    Columns are numbered in the order in which they lie.
    """
    o, i = column // layout.inner, column % layout.inner
    offset = row[:, None] * layout.stride_row + (o * layout.stride_outer + i * layout.stride_inner)[None, :]
    inside = (row < layout.rows)[:, None] & (column < layout.columns)[None, :]
    return offset, inside, o * layout.outer + i * layout.step


# ---- forward --------------------------------------------------------------------------------------------------------


@triton.jit
def rows_kernel(
    table,  # (layers, FIELDS)
    blocks,  # (programs, 2): layer, first row
    products,  # of type ACC: t is written. t and s of each layer lie as u and v do in the vectors
    WEIGHT: tl.constexpr,  # type of the weights, u and v
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """t = W v"""
    ACC: tl.constexpr = products.dtype.element_ty
    block = blocks + 2 * tl.program_id(0)
    entry = table + tl.load(block) * FIELDS
    row = tl.load(block + 1) + tl.arange(0, ROWS)
    weight = tl.load(entry).to(tl.pointer_type(WEIGHT))
    v = tl.load(entry + 2).to(tl.pointer_type(WEIGHT))
    layout = _layout(entry)
    rows, columns = layout.rows, layout.columns
    total = tl.zeros((ROWS, COLUMNS), ACC)
    for first in range(0, columns, COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        offset, inside, place = _tile(layout, row, column)
        w = tl.load(weight + offset, mask=inside, other=0.0).to(ACC)
        total += w * tl.load(v + place, mask=column < columns, other=0.0).to(ACC)[None, :]
    tl.store(products + tl.load(entry + 12) + row, tl.sum(total, axis=1), mask=row < rows)


@triton.jit
def columns_kernel(
    table,  # (layers, FIELDS)
    blocks,  # (programs, 2): layer, first column
    products,  # of rows_kernel, which wrote t; s is written
    vectors,  # of type ACC: u is written
    WEIGHT: tl.constexpr,
    EPS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """s = Wᵀ t / max(‖t‖, ε); the first program of a layer also writes u."""
    ACC: tl.constexpr = products.dtype.element_ty
    block = blocks + 2 * tl.program_id(0)
    entry = table + tl.load(block) * FIELDS
    first_column = tl.load(block + 1)
    column = first_column.to(tl.int32) + tl.arange(0, COLUMNS)
    weight = tl.load(entry).to(tl.pointer_type(WEIGHT))
    start = tl.load(entry + 12)
    layout = _layout(entry)
    rows, columns = layout.rows, layout.columns
    total = tl.zeros((ROWS, COLUMNS), ACC)
    squares = tl.zeros((ROWS,), ACC)
    for first in range(0, rows, ROWS):
        row = first + tl.arange(0, ROWS)
        offset, inside, place = _tile(layout, row, column)
        t = tl.load(products + start + row, mask=row < rows, other=0.0)
        total += tl.load(weight + offset, mask=inside, other=0.0).to(ACC) * t[:, None]
        squares += t * t
    norm = tl.sqrt(tl.sum(squares, axis=0))
    divisor = tl.maximum(norm, tl.full((), EPS, ACC))  # tl.maximum would make EPS a float32
    _, _, place = _tile(layout, tl.arange(0, ROWS), column)
    tl.store(products + start + rows + place, tl.sum(total, axis=0) / divisor, mask=column < columns)
    if first_column == 0:
        kept = tl.load(entry + 1).to(tl.pointer_type(WEIGHT))
        for first in range(0, rows, ROWS):
            row = first + tl.arange(0, ROWS)
            t = tl.load(products + start + row, mask=row < rows, other=0.0)
            u = tl.where(norm == 0, tl.load(kept + row, mask=row < rows, other=0.0).to(ACC), t / divisor)
            tl.store(vectors + start + row, u, mask=row < rows)
            tl.store(kept + row, u.to(WEIGHT), mask=row < rows)


@triton.jit
def normalise_kernel(
    table,  # (layers, FIELDS)
    blocks,  # (programs, 2): layer, first row
    products,  # t, and s if ITERATE
    vectors,  # v is written if ITERATE, else u and v
    sigmas,  # (layers,) of type ACC, written
    normalised,  # all Ŵ, written; or None
    WEIGHT: tl.constexpr,
    ITERATE: tl.constexpr,
    EPS: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """v = s / max(‖s‖, ε) and σ = s · v, or only σ = u · t; then Ŵ = W / σ. A layer's first program writes v and σ."""
    ACC: tl.constexpr = products.dtype.element_ty
    block = blocks + 2 * tl.program_id(0)
    entry = table + tl.load(block) * FIELDS
    first_row = tl.load(block + 1)
    kept_u = tl.load(entry + 1).to(tl.pointer_type(WEIGHT))
    kept_v = tl.load(entry + 2).to(tl.pointer_type(WEIGHT))
    start = tl.load(entry + 12)
    layout = _layout(entry)
    rows, columns = layout.rows, layout.columns
    lane = tl.arange(0, COLUMNS)

    sums = tl.zeros((COLUMNS,), ACC)
    if ITERATE:
        for first in range(0, columns, COLUMNS):
            s = tl.load(products + start + rows + first + lane, mask=first + lane < columns, other=0.0)
            sums += s * s
        squares = tl.sum(sums, axis=0)
        divisor = tl.maximum(tl.sqrt(squares), tl.full((), EPS, ACC))
        sigma = squares / divisor
    else:
        for first in range(0, rows, COLUMNS):
            t = tl.load(products + start + first + lane, mask=first + lane < rows, other=0.0)
            sums += t * tl.load(kept_u + first + lane, mask=first + lane < rows, other=0.0).to(ACC)
        sigma = tl.sum(sums, axis=0)
    is_zero = sigma == 0
    sigma = tl.where(is_zero, 1.0, sigma)

    if first_row == 0:
        tl.store(sigmas + tl.load(entry + 13), sigma)
        for first in range(0, columns, COLUMNS):
            mask = first + lane < columns
            v = tl.load(kept_v + first + lane, mask=mask, other=0.0).to(ACC)
            if ITERATE:
                s = tl.load(products + start + rows + first + lane, mask=mask, other=0.0)
                v = tl.where(is_zero, v, s / divisor)
                tl.store(kept_v + first + lane, v.to(WEIGHT), mask=mask)
            tl.store(vectors + start + rows + first + lane, v, mask=mask)
        if not ITERATE:
            for first in range(0, rows, COLUMNS):
                mask = first + lane < rows
                u = tl.load(kept_u + first + lane, mask=mask, other=0.0).to(ACC)
                tl.store(vectors + start + first + lane, u, mask=mask)

    if normalised is not None:
        weight = tl.load(entry).to(tl.pointer_type(WEIGHT))
        target = normalised + tl.load(entry + 11)
        row = first_row + tl.arange(0, ROWS)
        for first in range(0, columns, COLUMNS):
            offset, inside, _ = _tile(layout, row, first + lane)
            w = tl.load(weight + offset, mask=inside, other=0.0).to(ACC)
            tl.store(target + offset, (w / sigma).to(normalised.dtype.element_ty), mask=inside)
        if first_row == 0:
            _pad(target, rows, columns, ALIGNMENT)


@triton.jit
def _pad(target, rows, columns, ALIGNMENT: tl.constexpr):
    """Write zeros from the end of a matrix to the next multiple of ALIGNMENT."""
    size = rows.to(tl.int64) * columns
    rest = size + tl.arange(0, ALIGNMENT)
    end = (size + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT
    tl.store(target + rest, tl.zeros((ALIGNMENT,), target.dtype.element_ty), mask=rest < end)


# ---- backward -------------------------------------------------------------------------------------------------------


@triton.jit
def inner_kernel(
    table,  # (layers with a gradient, FIELDS)
    blocks,  # (programs, 2): row of the table, first row
    normalised,  # Ŵ of all layers
    sums,  # (programs,) of type ACC, written
    GRAD: tl.constexpr,  # type of G
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """The part of ⟨G, Ŵ⟩ that a block of rows contributes."""
    ACC: tl.constexpr = sums.dtype.element_ty
    block = blocks + 2 * tl.program_id(0)
    entry = table + tl.load(block) * FIELDS
    row = tl.load(block + 1) + tl.arange(0, ROWS)
    grad = tl.load(entry).to(tl.pointer_type(GRAD))
    w_hat = normalised + tl.load(entry + 11)
    layout = _layout(entry)
    total = tl.zeros((ROWS, COLUMNS), ACC)
    for first in range(0, layout.columns, COLUMNS):
        offset, inside, _ = _tile(layout, row, first + tl.arange(0, COLUMNS))
        g = tl.load(grad + offset, mask=inside, other=0.0).to(ACC)
        total += g * tl.load(w_hat + offset, mask=inside, other=0.0).to(ACC)
    tl.store(sums + tl.program_id(0), tl.sum(tl.sum(total, axis=1), axis=0))


@triton.jit
def gradient_kernel(
    table,  # (layers with a gradient, FIELDS)
    blocks,  # (programs, 2): row of the table, first row
    vectors,  # u and v of all layers, of type ACC
    sigmas,  # of all layers, of type ACC
    sums,  # of inner_kernel
    gradients,  # ∂L/∂W, written
    GRAD: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """∂L/∂W = (G − ⟨G, Ŵ⟩ u vᵀ) / σ"""
    ACC: tl.constexpr = sums.dtype.element_ty
    block = blocks + 2 * tl.program_id(0)
    entry = table + tl.load(block) * FIELDS
    first_row = tl.load(block + 1)
    row = first_row + tl.arange(0, ROWS)
    lane = tl.arange(0, COLUMNS)
    layout = _layout(entry)
    rows, columns = layout.rows, layout.columns

    count = tl.cdiv(rows, ROWS)
    parts = tl.zeros((COLUMNS,), ACC)
    for first in range(0, count, COLUMNS):
        parts += tl.load(sums + tl.load(entry + 15) + first + lane, mask=first + lane < count, other=0.0)
    inner = tl.sum(parts, axis=0)

    u = vectors + tl.load(entry + 12)
    sigma = tl.load(sigmas + tl.load(entry + 13))
    factor = inner * tl.load(u + row, mask=row < rows, other=0.0)
    grad = tl.load(entry).to(tl.pointer_type(GRAD))
    target = gradients + tl.load(entry + 14)
    for first in range(0, columns, COLUMNS):
        offset, inside, place = _tile(layout, row, first + lane)
        g = tl.load(grad + offset, mask=inside, other=0.0).to(ACC)
        v = tl.load(u + rows + place, mask=first + lane < columns, other=0.0)
        through = g - factor[:, None] * v[None, :]
        tl.store(target + offset, (through / sigma).to(gradients.dtype.element_ty), mask=inside)
    if first_row == 0:
        _pad(target, rows, columns, ALIGNMENT)


# ---- launches -------------------------------------------------------------------------------------------------------


def iterate(weights: Sequence[Tensor], us: Sequence[Tensor], vs: Sequence[Tensor]) -> None:
    """The same as `reference.iterate`, for weights of one device and dtype."""
    _run(weights, us, vs, None, True)


def forward(
    weights: Sequence[Tensor], us: Sequence[Tensor], vs: Sequence[Tensor], *, dtype: torch.dtype, iterate: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The same as `reference.forward`, for weights of one device and dtype."""
    normalised = weights[0].new_empty(sum(map(padded, weights)), dtype=dtype)
    return normalised, *_run(weights, us, vs, normalised, iterate)


def _run(
    weights: Sequence[Tensor], us: Sequence[Tensor], vs: Sequence[Tensor], normalised: Tensor | None, iterate: bool
) -> tuple[Tensor, Tensor]:
    """The vectors and σ. Writes Ŵ to `normalised`, unless it is None."""
    device, accumulator = weights[0].device, accumulator_of(weights[0])
    tables = _tables(weights)
    weights = [lying_as(weight, strides_of(weight)) for weight in weights]
    layouts = [layout_of(tuple(weight.shape), weight.stride()) for weight in weights]
    places = starts([padded(weight) for weight in weights])
    of_vectors = starts([vectors_size(weight) for weight in weights])
    products, vectors = (torch.empty(of_vectors[-1], dtype=accumulator, device=device) for _ in range(2))
    sigmas = torch.empty(len(weights), dtype=accumulator, device=device)

    rows = [
        (w.data_ptr(), u.data_ptr(), v.data_ptr(), *layout, places[i], of_vectors[i], i, 0, 0)
        for i, (w, u, v, layout) in enumerate(zip(weights, us, vs, layouts, strict=True))
    ]
    table = tables["weights"](rows, device)
    by_rows = _pieces(tuple(layout.rows for layout in layouts), ROWS)
    by_columns = _pieces(tuple(layout.columns for layout in layouts), FEW_COLUMNS)
    rows_of_all = tables["rows"](by_rows, device)
    columns_of_all = tables["columns"](by_columns, device) if iterate else None
    final = rows_of_all if normalised is not None else tables["layers"](_pieces((1,) * len(weights), 1), device)
    blocks = rows_of_all, columns_of_all, final
    _normalise(table, *blocks, products, vectors, sigmas, normalised, dtype=weights[0].dtype)
    return vectors, sigmas


@planned()
def _normalise(
    table: Tensor,
    by_rows: Tensor,
    by_columns: Tensor | None,
    final: Tensor,
    products: Tensor,
    vectors: Tensor,
    sigmas: Tensor,
    normalised: Tensor | None,
    *,
    dtype: torch.dtype,
) -> Callable[..., None]:
    """The launches of the forward. They iterate if there is `by_columns`. The last writes the blocks `final`."""
    iterates = by_columns is not None
    options: dict[str, Any] = {"WEIGHT": TRITON_TYPES[dtype], "ROWS": ROWS, "COLUMNS": COLUMNS}
    deep = options | {"ROWS": DEEP_ROWS, "COLUMNS": FEW_COLUMNS, "EPS": EPS}
    first = BoundLaunch(len(by_rows), (), options)
    second = BoundLaunch(0 if by_columns is None else len(by_columns), (), deep)
    last = BoundLaunch(len(final), (), options | {"ITERATE": iterates, "EPS": EPS, "ALIGNMENT": ALIGNMENT})

    def run(table, by_rows, by_columns, final, products, vectors, sigmas, normalised):
        first(rows_kernel, table, by_rows, products)
        if iterates:
            second(columns_kernel, table, by_columns, products, vectors)
        last(normalise_kernel, table, final, products, vectors, sigmas, normalised)

    return run


def backward(
    grads: Sequence[Tensor],
    layers: Sequence[int],
    normalised: Tensor,
    vectors: Tensor,
    sigmas: Tensor,
    weights: Sequence[Tensor],
) -> Tensor:
    """The same as `reference.backward`, for gradients of one dtype."""
    used, device = [weights[layer] for layer in layers], normalised.device
    grads = [lying_as(grad, strides_of(weight)) for weight, grad in zip(used, grads, strict=True)]
    layouts = [layout_of(tuple(weight.shape), strides_of(weight)) for weight in used]
    places = starts([padded(weight) for weight in weights])
    of_vectors = starts([vectors_size(weight) for weight in weights])
    targets = starts([padded(weight) for weight in used])
    programs = starts([triton.cdiv(layout.rows, ROWS) for layout in layouts])
    gradients = weights[0].new_empty(targets[-1])
    sums = torch.empty(programs[-1], dtype=vectors.dtype, device=device)

    tables = _tables(used)
    rows = [
        (grad.data_ptr(), 0, 0, *layout, places[i], of_vectors[i], i, target, program)
        for i, grad, layout, target, program in zip(layers, grads, layouts, targets, programs, strict=False)
    ]
    by_rows = _pieces(tuple(layout.rows for layout in layouts), ROWS)
    table, blocks = tables["gradients"](rows, device), tables["rows"](by_rows, device)
    _differentiate(table, blocks, normalised, vectors, sigmas, sums, gradients, dtype=grads[0].dtype)
    return gradients


@planned()
def _differentiate(
    table: Tensor,
    blocks: Tensor,
    normalised: Tensor,
    vectors: Tensor,
    sigmas: Tensor,
    sums: Tensor,
    gradients: Tensor,
    *,
    dtype: torch.dtype,
) -> Callable[..., None]:
    """The launches of the backward."""
    options: dict[str, Any] = {"GRAD": TRITON_TYPES[dtype], "ROWS": ROWS, "COLUMNS": COLUMNS}
    first = BoundLaunch(len(blocks), (), options)
    second = BoundLaunch(len(blocks), (), options | {"ALIGNMENT": ALIGNMENT})

    def run(table, blocks, normalised, vectors, sigmas, sums, gradients):
        first(inner_kernel, table, blocks, normalised, sums)
        second(gradient_kernel, table, blocks, vectors, sigmas, sums, gradients)

    return run


class _Known(NamedTuple):
    """The tables of some weights, by their use, and the memory of the weights."""

    memory: list[StorageWeakRef]
    tables: defaultdict[str, PointerTable]


_known: dict[tuple[int, ...], _Known] = {}
"""By the addresses of the weights."""


def _tables(weights: Sequence[Tensor]) -> defaultdict[str, PointerTable]:
    """The tables of these weights. They are kept as long as the weights, which stay in place from step to step."""
    place = tuple(weight.data_ptr() for weight in weights)
    found = _known.get(place)
    if found is None or any(memory.expired() for memory in found.memory):
        for other in [other for other, known in _known.items() if any(memory.expired() for memory in known.memory)]:
            del _known[other]
        found = _Known([StorageWeakRef(weight.untyped_storage()) for weight in weights], defaultdict(PointerTable))
        _known[place] = found
    return found.tables


@functools.lru_cache(maxsize=256)
def _pieces(sizes: tuple[int, ...], length: int) -> tuple[tuple[int, int], ...]:
    """`pieces`, kept from step to step."""
    return tuple(pieces(sizes, length))
