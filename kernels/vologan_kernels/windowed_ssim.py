"""Structural similarity in a sliding Gaussian window (Wang et al., IEEE TIP 2004, doi 10.1109/TIP.2003.819861).

Every window weighs its pixels. With the weighted means μ, variances σ² and covariance σ_ab of a window,

    SSIM = (2 μ_a μ_b + C₁) / (μ_a² + μ_b² + C₁) · (2 σ_ab + C₂) / (σ_a² + σ_b² + C₂)

For images in [0, R], C₁ = (0.01 R)² and C₂ = (0.03 R)². It is computed from the sum s = a + b and the difference
d = a − b:

    SSIM = (1 − u) (1 − v),   u = 2 μ_d² / (μ_s² + μ_d² + 2 C₁),   v = 2 σ_d² / (σ_s² + σ_d² + 2 C₂)

This needs four windowed means, E[s], E[d], E[s²] and E[d²], instead of five. It also stays exact where a and b are
close. Subtracting a constant from x does not change σ² = E[x²] − E[x]², but then fewer digits are lost. So x is the s
or d of images from which their mean was subtracted.

The window is a product of two Gaussians, so the means are two one-dimensional convolutions. Autograd would keep every
map on the way, about 20 times an image. A gradient written by hand needs only the images and their four moments. With
G for the weighting,

    ∂L/∂x = Gᵀ[∂L/∂E[x]] + 2 x · Gᵀ[∂L/∂E[x²]],   ∂L/∂a = ∂L/∂s + ∂L/∂d,   ∂L/∂b = ∂L/∂s − ∂L/∂d

Both gradients are ordinary PyTorch, which can be differentiated.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from vologan_kernels.dispatch import only_standard_operations
from vologan_kernels.precision import to_accumulator


def windowed_ssim(
    prediction: Tensor,
    target: Tensor,
    *,
    data_range: float = 1.0,
    window: int = 11,
    sigma: float = 1.5,
    padding: Literal["valid", "same"] = "valid",
    reduction: Literal["mean", "none"] = "mean",
) -> Tensor:
    """SSIM of images (N, C, H, W) with values in [0, `data_range`].

    It is 1 where the images are equal, and never outside [−1, 1]. A loss is `1 - windowed_ssim(prediction, target)`.
    Both images may need a gradient, and may have any floating dtype and layout.

    - A window has `window` × `window` pixels, weighed by a Gaussian with standard deviation `sigma`, in pixels.
    - `padding`: "valid" takes the windows that lie inside the image, as the paper and pytorch-msssim do. "same" takes a
      window around every pixel of the image, reflected at its borders, as torchmetrics does.
    - `reduction`: "mean" is one number, the mean over everything. "none" is one value for each image, (N,).

    The result is float32, or float64 if an image is. An empty batch has mean NaN, as in torch's losses.

    Raises ValueError for shapes that differ, integer images, an even `window`, numbers that are not positive, and
    unknown options. It also refuses images smaller than the window, or with "same" padding, smaller than half of it,
    rounded up.
    """
    _check(prediction, target, data_range, window, sigma, padding, reduction)
    if padding == "same":
        border = (window // 2,) * 4
        prediction, target = (F.pad(image, border, mode="reflect") for image in (prediction, target))
    centres = [to_accumulator(image.detach()).mean(dim=(2, 3), keepdim=True) for image in (prediction, target)]
    of_windows: Callable[..., Tensor] = _Moments.apply
    of_moments: Callable[..., Tensor] = _Similarity.apply
    if only_standard_operations():  # the Functions compute the same and save memory
        of_windows, of_moments = _moments, _similarity
    moments = of_windows(prediction, target, *centres, window, sigma)
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    similarity = of_moments(moments, _sum_and_difference(*centres), 2 * c1, 2 * c2)
    return similarity.mean() if reduction == "mean" else similarity.mean(dim=(1, 2, 3))


class _Images(NamedTuple):
    """Two images, and their centres (N, C, 1, 1), which are subtracted from them."""

    a: Tensor
    b: Tensor
    centre_a: Tensor
    centre_b: Tensor


def _moments(a: Tensor, b: Tensor, centre_a: Tensor, centre_b: Tensor, window: int, sigma: float) -> Tensor:
    """(E[x], E[x²]) in every window, as (N, 2, 2, C, h, w). x is (s, d) of the images minus their centres."""
    x = _sum_and_difference(a - centre_a, b - centre_b)
    return _blur(torch.stack((x, x.square()), 1), window, sigma)


class _Moments(torch.autograd.Function):
    """`_moments` as a function that keeps its arguments and no map.

    The centres are constants, because SSIM does not depend on them.
    """

    @staticmethod
    def forward(
        ctx: Any, a: Tensor, b: Tensor, centre_a: Tensor, centre_b: Tensor, window: int, sigma: float
    ) -> Tensor:
        ctx.window, ctx.sigma = window, sigma
        ctx.save_for_backward(*_Images(a, b, centre_a, centre_b))
        return _moments(a, b, centre_a, centre_b, window, sigma)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        images = _Images(*ctx.saved_tensors)
        x = _sum_and_difference(images.a - images.centre_a, images.b - images.centre_b)
        # The weights are symmetric. So the filter's transpose is the filter, in every window that touches the gradient.
        of_mean, of_square = _blur(F.pad(grad, (ctx.window - 1,) * 4), ctx.window, ctx.sigma).unbind(1)
        of_sum, of_difference = (of_mean + 2 * x * of_square).unbind(1)
        grad_a, grad_b = of_sum + of_difference, of_sum - of_difference
        return grad_a.to(images.a.dtype), grad_b.to(images.b.dtype), None, None, None, None


class _Windows(NamedTuple):
    """The results of `_Moments`, and (s, d) of the centres, (N, 2, C, 1, 1)."""

    moments: Tensor
    centre: Tensor


def _similarity(moments: Tensor, centre: Tensor, c1: float, c2: float) -> Tensor:
    """(1 − u) (1 − v), as (N, C, h, w), from `_Windows`, 2 C₁ and 2 C₂."""
    _, u, v, _, _ = _shares(moments, centre, c1, c2)
    return (1 - u) * (1 - v)


class _Similarity(torch.autograd.Function):
    """`_similarity` as a function that keeps its arguments."""

    @staticmethod
    def forward(ctx: Any, moments: Tensor, centre: Tensor, c1: float, c2: float) -> Tensor:
        ctx.c1, ctx.c2 = c1, c2
        ctx.save_for_backward(*_Windows(moments, centre))
        return _similarity(moments, centre, c1, c2)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        windows = _Windows(*ctx.saved_tensors)
        mean, u, v, mean_energy, energy = _shares(windows.moments, windows.centre, ctx.c1, ctx.c2)
        # u = 2 p / (q + p + c) has ∂(1 − u)/∂q = u / (q + p + c) and ∂(1 − u)/∂p = −(2 − u) / (q + p + c). v is alike.
        luminance = grad * (1 - v) / mean_energy
        contrast = grad * (1 - u) / energy
        of_squared_mean = torch.stack((luminance * u, luminance * (u - 2)), 1)
        of_variance = torch.stack((contrast * v, contrast * (v - 2)), 1)
        of_mean = 2 * (mean * of_squared_mean - windows.moments[:, 0] * of_variance)
        return torch.stack((of_mean, of_variance), 1), None, None, None


def _shares(moments: Tensor, centre: Tensor, c1: float, c2: float) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(μ_s, μ_d), u, v, and the denominators of u and of v."""
    of_x, of_square = moments.unbind(1)
    mean = of_x + centre
    mean_s, mean_d = mean.square().unbind(1)
    # Rounding must not make a variance negative, because the denominator could vanish.
    variance_s, variance_d = (of_square - of_x.square()).clamp(min=0).unbind(1)
    mean_energy, energy = mean_s + mean_d + c1, variance_s + variance_d + c2
    return mean, 2 * mean_d / mean_energy, 2 * variance_d / energy, mean_energy, energy


def _sum_and_difference(a: Tensor, b: Tensor) -> Tensor:
    """(s, d) of two images, as (N, 2, C, H, W)."""
    return torch.stack((a + b, a - b), 1)


def _blur(maps: Tensor, window: int, sigma: float) -> Tensor:
    """The weighted means of all windows inside maps (N, 2, 2, C, H, W)."""
    reach = window // 2 / (math.sqrt(2) * sigma)
    weights = torch.linspace(-reach, reach, window, dtype=maps.dtype, device=maps.device).square().neg().softmax(0)
    # Every map is a channel of its own, and there are at least four. So a GPU runs PyTorch's depthwise kernels, which
    # compute in float32. cuDNN's convolutions would round to TensorFloat-32, and autocast would round further.
    count = math.prod(maps.shape[1:4])
    planes = maps.reshape(maps.shape[0], count, *maps.shape[4:])
    row = weights.expand(count, 1, 1, window)
    with torch.autocast(maps.device.type, enabled=False):
        blurred = F.conv2d(F.conv2d(planes, row, groups=count), row.transpose(2, 3), groups=count)
    return blurred.view(*maps.shape[:4], *blurred.shape[2:])


def _check(
    prediction: Tensor,
    target: Tensor,
    data_range: float,
    window: int,
    sigma: float,
    padding: str,
    reduction: str,
) -> None:
    for name, image in (("prediction", prediction), ("target", target)):
        if not image.is_floating_point():
            raise ValueError(f"windowed_ssim: {name} must have a floating-point dtype, found {image.dtype}")
    if prediction.shape != target.shape or prediction.dim() != 4 or prediction.shape[1] == 0:
        raise ValueError(
            "windowed_ssim: prediction and target must be (N, C, H, W) of one shape with C ≥ 1, "
            f"found {tuple(prediction.shape)} and {tuple(target.shape)}"
        )
    for name, number in (("data_range", data_range), ("sigma", sigma)):
        if not 0 < number < math.inf:
            raise ValueError(f"windowed_ssim: {name} must be a positive number, found {number}")
    if not isinstance(window, int) or window < 1 or window % 2 == 0:
        raise ValueError(f"windowed_ssim: window must be a positive odd integer, found {window}")
    if padding not in ("valid", "same"):
        raise ValueError(f"windowed_ssim: padding must be 'valid' or 'same', found {padding!r}")
    if reduction not in ("mean", "none"):
        raise ValueError(f"windowed_ssim: reduction must be 'mean' or 'none', found {reduction!r}")
    smallest = window if padding == "valid" else window // 2 + 1
    height, width = prediction.shape[-2:]
    if min(height, width) < smallest:
        raise ValueError(
            f"windowed_ssim: images must be at least {smallest} × {smallest} pixels for window={window} and "
            f"padding={padding!r}, found {height} × {width}"
        )
