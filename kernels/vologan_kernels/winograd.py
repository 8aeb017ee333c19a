"""Convolutions with 3 × 3 kernels on a CPU, in float32, with a fourth of the multiplications.

Winograd's minimal filtering F(4 × 4, 3 × 3) computes 4 × 4 pixels of a result from 6 × 6 pixels d of an image and a
kernel g:

    Y = Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A

Source: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", arXiv 1509.09308. The sums over channels
are products of matrices, one for each of the 36 numbers of a transformed patch. `torch.bmm` computes them, and the
native library the transforms (`csrc/winograd_transforms.h` has the matrices).

A transform of patches is a *gather* here. Its transposed function is a *scatter*. Each is the gradient of the other, so
the gradients need no matrices of their own.

An error of a result is relative to the largest number in its patch. It is about twice as large as with oneDNN. If a
pixel is infinite or NaN, all 4 × 4 results of its patches are NaN.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vologan_kernels import native_library
from vologan_kernels.dispatch import is_batched, is_plain, only_standard_operations

CHANNELS, PATCHES = 128, 256
"""The fewest channels, and patches of all images, for which this form was faster with one thread and with two."""
_STEP, _NUMBERS = 4, 36
"""Pixels between two patches of an image, and the numbers of a transformed patch."""
_AT_ONCE = 256
"""About so many patches are transformed at once. Their numbers then stay in the processor's caches."""
_LONGEST_ROW = 1024
"""The most patches in a row, which are transformed at once in any case. Wider images would take much memory."""
_IMAGE, _RESULT, _KERNEL = 0, 1, 2
"""VologanPatches in csrc/winograd.h."""


def is_faster(x: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, ...]) -> bool:
    """Whether `convolve` computes a convolution of stride 1, probably in less time than torch does.

    x is (N, I, H, W), weight is (O, I, k, l). This was measured on x86. On ARM, torch itself has such a form.
    """
    if not (_is_computable(x, weight, bias) and "avx2" in native_library.levels()):
        return False
    out, channels, *kernel = weight.shape
    if kernel != [3, 3] or channels != x.shape[1] or min(out, channels) < CHANNELS or min(padding) < 0:
        return False
    if (bias is not None and bias.shape != (out,)) or not _multiplies_exactly():
        return False
    rows, columns = (_patches(x.shape[i] + 2 * padding[i - 2] - 2) for i in (2, 3))
    enough = min(rows, columns) > 0 and x.shape[0] * rows * columns >= PATCHES
    return enough and columns <= _LONGEST_ROW and all(map(_is_channels_last, (x, weight)))


def _is_computable(*tensors: Tensor | None) -> bool:
    """Whether the memory of these tensors holds float32 values that the library can read."""
    return all(t is None or (t.is_cpu and t.dtype == torch.float32 and is_plain(t)) for t in tensors)


def _is_channels_last(tensor: Tensor) -> bool:
    return tensor.is_contiguous(memory_format=torch.channels_last)


def _multiplies_exactly() -> bool:
    """Whether `torch.bmm` computes in float32, whatever the processor has for lower precision."""
    if not hasattr(torch._C, "_get_fp32_precision_getter"):  # before torch 2.9
        return torch.get_float32_matmul_precision() == "highest"
    return torch._C._get_fp32_precision_getter("mkldnn", "matmul") in ("none", "ieee")


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, ...]) -> Tensor:
    """The same as `F.conv2d(x, weight, bias, padding=padding)`, for tensors that `is_faster` accepts.

    The result is channels_last, and so are the gradients of x and weight.
    """
    y: Tensor = _Convolution.apply(x, weight, bias, padding)
    return y


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, ...]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.padding, ctx.has_bias, ctx.shapes = padding, bias is not None, (x.shape, weight.shape)
        (n, channels_in, h, w), channels_out = x.shape, weight.shape[0]
        sides = h + 2 * padding[0] - 2, w + 2 * padding[1] - 2
        y = torch.empty((n, channels_out, *sides), dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        kernels = _gathered(weight)
        patches = _Patches.of(y, padding)
        images, results = patches.space(channels_in), patches.space(channels_out)
        for rows in patches.parts():
            d, m = rows.used(images), rows.used(results)
            rows.gather(_IMAGE, x, d)
            torch.bmm(d, kernels.transpose(1, 2), out=m)
            rows.scatter(_RESULT, m, y, None if bias is None else bias.contiguous())
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors  # which hooks may have changed, or another run of the forward has made
        wanted = ctx.needs_input_grad[:3]
        if (
            torch.is_grad_enabled()
            or only_standard_operations()
            or torch._C._len_torch_dispatch_stack()
            or is_batched(grad)
            or not _is_computable(x, weight, grad)
            or (x.shape, weight.shape) != ctx.shapes
        ):
            bias, padding = [weight.shape[0]] if ctx.has_bias else None, [*ctx.padding]
            options: Any = [1, 1], padding, [1, 1], False, [0, 0], 1, [*wanted]
            return *torch.ops.aten.convolution_backward(grad, x, weight, bias, *options), None
        x, weight, grad = (t.contiguous(memory_format=torch.channels_last) for t in (x, weight, grad))
        d_bias = grad.sum((0, 2, 3)) if wanted[2] else None
        return *_gradients(x, weight, grad, ctx.padding, wanted[0], wanted[1]), d_bias, None


def _gradients(
    x: Tensor, weight: Tensor, grad: Tensor, padding: tuple[int, ...], of_x: bool, of_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of x and of the weight, or None for what is not wanted."""
    patches = _Patches.of(grad, padding)
    images, results = patches.space(x.shape[1]), patches.space(weight.shape[0])
    kernels = _gathered(weight) if of_x else None
    d_kernels = _space(weight.shape[0], weight.shape[1]).zero_() if of_weight else None
    dx = torch.zeros_like(x) if of_x else None
    for rows in patches.parts():
        d, m = rows.used(images), rows.used(results)
        rows.gather(_RESULT, grad, m)
        if d_kernels is not None:
            rows.gather(_IMAGE, x, d)
            d_kernels.baddbmm_(m.transpose(1, 2), d)
        if dx is not None:
            assert kernels is not None
            torch.bmm(m, kernels, out=d)
            rows.scatter(_IMAGE, d, dx)
    if d_kernels is None:
        return dx, None
    d_weight = torch.empty_like(weight)
    _Patches.of_kernels(weight).scatter(_KERNEL, d_kernels, d_weight)
    return dx, d_weight


def _gathered(weight: Tensor) -> Tensor:
    """The transformed kernels, (36, O, I)."""
    kernels = _space(weight.shape[0], weight.shape[1])
    _Patches.of_kernels(weight).gather(_KERNEL, weight, kernels)
    return kernels


@dataclass(frozen=True)
class _Patches:
    """Rows of patches: `count` of all images' rows, from the row `first` on. Each image has `rows` of `columns`."""

    rows: int
    columns: int
    padding: tuple[int, ...]
    """Rows and columns of zeros around an image."""
    first: int
    count: int

    @classmethod
    def of(cls, result: Tensor, padding: tuple[int, ...]) -> _Patches:
        """All patches of which a result (N, O, H, W) consists."""
        rows, columns = (_patches(side) for side in result.shape[2:])
        return cls(rows, columns, padding, 0, result.shape[0] * rows)

    @classmethod
    def of_kernels(cls, weight: Tensor) -> _Patches:
        """A patch for each kernel of a weight (O, I, 3, 3)."""
        return cls(1, 1, (0, 0), 0, weight.shape[0])

    def parts(self) -> Iterator[_Patches]:
        """Yield all rows in turn, so many at once as `space` has room for."""
        for first in range(0, self.count, self._rows_at_once):
            yield replace(self, first=first, count=min(self._rows_at_once, self.count - first))

    @property
    def _rows_at_once(self) -> int:
        return min(max(_AT_ONCE // self.columns, 1), self.count)

    def space(self, channels: int) -> Tensor:
        """Memory for the transforms of a part, (36, patches, channels)."""
        return _space(self._rows_at_once * self.columns, channels)

    def used(self, space: Tensor) -> Tensor:
        """What this part needs of it."""
        return space[:, : self.count * self.columns]

    def gather(self, kind: int, image: Tensor, transformed: Tensor) -> None:
        """Transform the patches of `image` (N, C, H, W), which is channels_last, into (36, patches, C)."""
        self._call(native_library.load().vologan_winograd_gather, kind, image, transformed)

    def scatter(self, kind: int, transformed: Tensor, image: Tensor, bias: Tensor | None = None) -> None:
        """The transposed function. Patches of _IMAGE overlap, so they are added to the image. The others replace it."""
        self._call(native_library.load().vologan_winograd_scatter, kind, image, transformed, bias)

    def _call(
        self, run: Callable[[int], None], kind: int, image: Tensor, transformed: Tensor, bias: Tensor | None = None
    ) -> None:
        _, c, h, w = image.shape
        padding = self.padding if kind == _IMAGE else (0, 0)
        call = array("q", (kind, torch.get_num_threads(), image.data_ptr(), h, w, c, h * w * c, w * c, *padding))
        call.extend((self.rows, self.columns, self.first, self.count, transformed.data_ptr(), transformed.stride(0)))
        call.append(0 if bias is None else bias.data_ptr())
        run(call.buffer_info()[0])


def _patches(side: int) -> int:
    """Patches along a side of a result."""
    return -(-side // _STEP)


def _space(patches: int, channels: int) -> Tensor:
    """Memory for transformed patches. One that is not used keeps the 36 from lying in the same sets of a cache."""
    return torch.empty(_NUMBERS, patches + 1, channels, dtype=torch.float32, device="cpu")[:, :patches]
