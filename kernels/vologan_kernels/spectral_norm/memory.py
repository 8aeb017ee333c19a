"""The places of a model's matrices in memory, and of their normalised copies and vectors."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from vologan_kernels.layouts import is_dense

ALIGNMENT = 64
"""All weights share one piece of memory. There, each weight is padded to a multiple of this many elements, which are at
least 128 bytes (for bfloat16)."""


class Layout(NamedTuple):
    """How a matrix lies in memory. Columns are numbered in the order in which they lie.

    With o = j // inner and i = j % inner, the element in row r and column j is at
    r · stride_row + o · stride_outer + i · stride_inner. Its number in v is o · outer + i · step.
    """

    rows: int
    columns: int
    inner: int
    stride_row: int
    stride_outer: int
    stride_inner: int
    outer: int
    step: int


def strides_of(weight: Tensor) -> tuple[int, ...]:
    """The strides of Ŵ: the strides of the weight, or contiguous ones if a `Layout` cannot express them."""
    return _strides(tuple(weight.shape), weight.stride())


@functools.lru_cache(maxsize=1024)
def _strides(shape: tuple[int, ...], stride: tuple[int, ...]) -> tuple[int, ...]:
    kernel = [(size, step) for size, step in zip(shape[2:], stride[2:], strict=True) if size > 1]
    follow = all(outer == size * inner for (_, outer), (size, inner) in itertools.pairwise(kernel))
    if follow and is_dense(shape, stride):
        return stride
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


@functools.lru_cache(maxsize=1024)
def layout_of(shape: tuple[int, ...], stride: tuple[int, ...]) -> Layout:
    """The layout of a matrix (out, in, *kernel) whose strides come from `strides_of`."""
    rows, channels, positions = *shape[:2], math.prod(shape[2:])
    stride_row, stride_channel = stride[:2]
    stride_position = next((step for size, step in zip(shape[:1:-1], stride[:1:-1], strict=True) if size > 1), 0)
    columns = channels * positions
    if positions == 1:
        return Layout(rows, columns, columns, stride_row, 0, stride_channel, 0, 1)
    if channels == 1 or stride_channel == positions * stride_position:
        return Layout(rows, columns, columns, stride_row, 0, stride_position, 0, 1)
    if stride_channel < stride_position:  # channels_last
        return Layout(rows, columns, channels, stride_row, stride_position, stride_channel, 1, positions)
    return Layout(rows, columns, positions, stride_row, stride_channel, stride_position, positions, 1)


def view(memory: Tensor, weight: Tensor, start: int) -> Tensor:
    """The part of the flat `memory` from `start` on, with the shape and strides of a weight."""
    return memory.as_strided(weight.shape, strides_of(weight), start)


def padded(weight: Tensor) -> int:
    """Elements of a weight with its padding."""
    return -(-weight.numel() // ALIGNMENT) * ALIGNMENT


def vectors_size(weight: Tensor) -> int:
    """Elements of u and v together."""
    return weight.shape[0] + weight.shape[1:].numel()


def starts(sizes: Sequence[int]) -> list[int]:
    """Return the starts of parts with these `sizes`, one after the other. The last number is the end of all."""
    return [0, *itertools.accumulate(sizes)]
