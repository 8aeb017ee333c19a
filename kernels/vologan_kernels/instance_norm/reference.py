"""The instance norm in plain PyTorch, on any device: the definition that the kernels are tested against."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from vologan_kernels.activations import ACTIVATIONS, Slope
from vologan_kernels.layouts import output_layout
from vologan_kernels.precision import refuse_complex, to_accumulator


def forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    slope: Tensor | None,
    residual: Tensor | None,
    eps: float,
    activation: str,
    negative_slope: float,
    reflection_pad: int,
    min_scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return y (N, C, H + 2·pad, W + 2·pad) in x's dtype, and mean and rstd (N, C) in `accumulator_of(x)`.

    `torch.nn.functional.instance_norm` has the same mathematics. But on the CPU, it returns wrong gradients for a
    single sample if the gradient of its result is channels_last (torch 2.13).
    """
    refuse_complex(weight, bias, slope, residual)
    layout = output_layout(x)
    work = to_accumulator(x).contiguous(memory_format=layout)
    gamma, beta = bounded_scale(weight, min_scale, work.dtype), None if bias is None else bias.to(work.dtype)
    norm = _contiguous_norm if layout == torch.contiguous_format else _norm
    u, mean, rstd = norm(work, gamma, beta, eps)
    y = _after_norm(u, slope, residual, activation, negative_slope, reflection_pad)
    return y.to(x.dtype).contiguous(memory_format=layout), mean, rstd


def standard_forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    slope: Tensor | None,
    residual: Tensor | None,
    eps: float,
    activation: str,
    negative_slope: float,
    reflection_pad: int,
    min_scale: float,
) -> Tensor:
    """The same y, by operations that every transform, tracer and exporter of PyTorch knows.

    For ONNX the norm is torch's instance norm, because ONNX has an operator for it. Exported models are not trained.
    """
    refuse_complex(weight, bias, slope, residual)
    work = to_accumulator(x)
    gamma, beta = bounded_scale(weight, min_scale, work.dtype), None if bias is None else bias.to(work.dtype)
    if torch.onnx.is_in_onnx_export():
        u = torch.instance_norm(work, gamma, beta, None, None, True, 0.0, eps, False)
    else:
        u, _, _ = _norm(work, gamma, beta, eps)
    return _after_norm(u, slope, residual, activation, negative_slope, reflection_pad).to(x.dtype)


def _norm(x: Tensor, gamma: Tensor | None, beta: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """γ · x̂ + β, mean and rstd by the formula, from deviations of the mean.

    The rounded mean leaves a rest, which is the mean of the deviations. With it, a plane far from 0 keeps its digits.
    The rest's square is far below the variance's digits.
    """
    mean = x.mean((2, 3))
    deviation = x - by_plane(mean)
    rest = deviation.mean((2, 3))
    rstd = torch.rsqrt(deviation.square().mean((2, 3)) + eps)
    scale = rstd if gamma is None else rstd * gamma
    shift = -rest * scale if beta is None else beta - rest * scale
    return torch.addcmul(by_plane(shift), deviation, by_plane(scale)), mean + rest, rstd


def _contiguous_norm(x: Tensor, gamma: Tensor | None, beta: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """The same by PyTorch's group norm with one channel a group, which is faster on the CPU.

    It would take channels_last images too. But for them it computes the variance as E[x²] − E[x]² in float32, which
    has no digits left if the mean is 1000 times the deviation (torch 2.13).
    """
    n, c, h, w = x.shape
    return torch.native_group_norm(x, _dense(gamma), _dense(beta), n, c, h * w, c, eps)


def _dense(parameter: Tensor | None) -> Tensor | None:
    """A parameter as PyTorch's group norm needs it: it reads C numbers side by side, whatever the stride is."""
    return None if parameter is None else parameter.contiguous()


def _after_norm(
    u: Tensor,
    slope: Tensor | None,
    residual: Tensor | None,
    activation: str,
    negative_slope: float,
    reflection_pad: int,
) -> Tensor:
    """What follows the norm: residual, activation and padding."""
    if residual is not None:
        u = u + residual.to(u.dtype)
    y = ACTIVATIONS[activation].function(u, slope_of(slope, negative_slope, u.dtype))
    return F.pad(y, (reflection_pad,) * 4, mode="reflect") if reflection_pad else y


def backward(
    grad: Tensor,
    saved: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    slope: Tensor | None,
    residual: Tensor | None,
    activation: str,
    negative_slope: float,
    reflection_pad: int,
    min_scale: float,
    from_output: bool,
    *,
    differentiable: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of x, weight, bias, slope and residual, as float64 for float64 tensors, else as float32.

    `saved` is the output y if `from_output`, else the input x. If weight, bias or residual is None, its gradient is
    still returned, for γ = 1, β = 0 and a residual of 0. `differentiable=False` is faster, but then the results have
    no derivatives.
    """
    x_hat, u = normalised(
        saved,
        mean,
        rstd,
        weight,
        bias,
        slope,
        residual,
        activation,
        negative_slope,
        reflection_pad,
        min_scale,
        from_output,
    )
    upstream = to_accumulator(grad)
    if reflection_pad:
        upstream = torch.ops.aten.reflection_pad2d_backward(upstream, u, (reflection_pad,) * 4)
    g = ACTIVATIONS[activation].gradient(upstream, u, slope_of(slope, negative_slope, u.dtype))
    gamma = bounded_scale(weight, min_scale, g.dtype)
    # Formats are asked for only where nothing is differentiated: batched tensors have none.
    at_once = not differentiable and output_layout(x_hat) == torch.contiguous_format
    through_norm = _contiguous_through_norm if at_once else _through_norm
    dx, d_weight, d_bias = through_norm(g, x_hat, rstd, gamma)
    d_slope = g.new_empty(0) if slope is None else torch.where(u > 0, 0, upstream * u).sum((0, 2, 3))
    return dx, d_weight, d_bias, d_slope, g


def _through_norm(g: Tensor, x_hat: Tensor, rstd: Tensor, gamma: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, γ and β by the formula. `g` is the gradient of γ · x̂ + β."""
    size = g.shape[2] * g.shape[3]
    sum_g, sum_gx = g.sum((2, 3)), (g * x_hat).sum((2, 3))
    centred = torch.addcmul(g - by_plane(sum_g / size), x_hat, by_plane(sum_gx / -size))
    return centred * by_plane(rstd if gamma is None else rstd * gamma), sum_gx.sum(0), sum_g.sum(0)


def _contiguous_through_norm(
    g: Tensor, x_hat: Tensor, rstd: Tensor, gamma: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the same by the backward of PyTorch's group norm. On the CPU it is faster for contiguous tensors.

    For channels_last tensors it is slower, and loses digits in its sums (torch 2.13). The input of the norm is x̂, with
    mean 0 and deviation 1. The factor rstd comes at the end.
    """
    n, c, h, w = g.shape
    dx, d_weight, d_bias = torch.ops.aten.native_group_norm_backward(
        g.contiguous(),
        x_hat.contiguous(),
        torch.zeros_like(rstd),
        torch.ones_like(rstd),
        g.new_ones(c) if gamma is None else _dense(gamma),
        n,
        c,
        h * w,
        c,
        [True] * 3,
    )
    return dx.mul_(by_plane(rstd)), d_weight, d_bias


def normalised(
    saved: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    slope: Tensor | None,
    residual: Tensor | None,
    activation: str,
    negative_slope: float,
    reflection_pad: int,
    min_scale: float,
    from_output: bool,
) -> tuple[Tensor, Tensor]:
    """x̂ and u, from the saved tensors."""
    saved = to_accumulator(saved)
    dtype = saved.dtype
    gamma = bounded_scale(weight, min_scale, dtype)
    shift = torch.zeros((), dtype=dtype, device=saved.device)
    if bias is not None:
        shift = shift + by_channel(bias.to(dtype))
    if residual is not None:
        shift = shift + residual.to(dtype)
    if not from_output:
        x_hat = (saved - by_plane(mean)) * by_plane(rstd)
        return x_hat, shift + (x_hat if gamma is None else x_hat * by_channel(gamma))
    pad = reflection_pad
    y = saved[:, :, pad : saved.shape[2] - pad, pad : saved.shape[3] - pad]
    inverse = ACTIVATIONS[activation].inverse
    assert inverse is not None, "save='output' was checked"
    u = inverse(y, slope_of(slope, negative_slope, dtype))
    return (u - shift if gamma is None else (u - shift) / by_channel(gamma)), u


def bounded_scale(weight: Tensor | None, min_scale: float, dtype: torch.dtype) -> Tensor | None:
    """γ in `dtype`, at least `min_scale` away from 0. Its gradient passes to the weight as if it were not bounded."""
    if weight is None:
        return None
    gamma = weight.to(dtype)
    if min_scale == 0:
        return gamma
    bounded = torch.where(gamma < 0, gamma.clamp(max=-min_scale), gamma.clamp(min=min_scale))
    return bounded.detach() + (gamma - gamma.detach())


def slope_of(slope: Tensor | None, negative_slope: float, dtype: torch.dtype) -> Slope:
    """The slope of the activation: for prelu the tensor `slope` (C,), else the number `negative_slope`."""
    return negative_slope if slope is None else by_channel(slope.to(dtype))


def by_channel(parameter: Tensor) -> Tensor:
    """A parameter (C,) as (1, C, 1, 1)."""
    return parameter[None, :, None, None]


def by_plane(statistic: Tensor) -> Tensor:
    """A statistic (N, C) as (N, C, 1, 1)."""
    return statistic[:, :, None, None]
