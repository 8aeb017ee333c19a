"""Instance normalisation, an optional residual, an activation and an optional reflection padding, in one operation.

    x̂ = (x − μ) · rstd      rstd = 1 / sqrt(σ² + ε)
    u  = γ · x̂ + β + residual
    y  = reflection_pad(f(u))

μ and σ² are the mean and the biased variance of each plane, that is of the H·W values of one channel of one sample
(Ulyanov et al., arXiv 1607.08022). Samples never interact, so a batch gives exactly what its samples give alone. With
g = f'(u) · pad*(∂L/∂y), where pad* is the adjoint of the padding, and means over the plane,

    ∂L/∂x = γ · rstd · (g − mean(g) − x̂ · mean(g · x̂))      ∂L/∂γ = Σ g · x̂      ∂L/∂β = Σ g      ∂L/∂residual = g

**What is saved for the backward.** The mean and rstd of each plane, and either the input, or the output, which the next
convolution keeps anyway: then the operation costs no memory of its own. x̂ comes back from y where f has an inverse
(`activations.py`) and γ is bounded away from 0: `save="auto"` takes the output if there is no γ, or a `min_scale`.

**Bytes**, in units of the tensor: forward reads 1 and writes 1, backward reads 2 and writes 1. The streamed form of
large planes (`instance_norm_triton.py`) issues 3 and 5; a second read can come from the cache.

Statistics are float32 (float64 for float64) whatever the input's dtype. A plane of one value has σ² = 0 and gives f(β):
such a layer carries no signal. That is defined here, not an error.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from vologan_kernels.activations import ACTIVATIONS, Slope, invertible
from vologan_kernels.dispatch import check_implementation, implementation
from vologan_kernels.precision import to_accumulator

# ---- reference: plain PyTorch, on any device ------------------------------------------------------------------------


def reference_forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    slope: Tensor | None,
    residual: Tensor | None,
    *,
    eps: float,
    activation: str,
    negative_slope: float,
    reflection_pad: int,
    min_scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """y (N, C, H + 2·pad, W + 2·pad) in x's dtype; mean and rstd (N, C) in the accumulator's.

    The norm is the group norm with one channel a group. `torch.nn.functional.instance_norm` is the same mathematics,
    but on the CPU it returns wrong gradients for one sample with a channels_last upstream gradient (torch 2.13).
    """
    n, c, h, w = x.shape
    work = to_accumulator(x).contiguous(memory_format=output_layout(x))
    gamma, beta = _scale(weight, min_scale, work.dtype), None if bias is None else bias.to(work.dtype)
    u, mean, rstd = torch.native_group_norm(work, gamma, beta, n, c, h * w, c, eps)
    if residual is not None:
        u = u + residual.to(u.dtype)
    y = ACTIVATIONS[activation].function(u, _slope(slope, negative_slope, u.dtype))
    if reflection_pad:
        y = F.pad(y, (reflection_pad,) * 4, mode="reflect")
    return y.to(x.dtype).contiguous(memory_format=output_layout(x)), mean, rstd


def reference_backward(
    grad: Tensor,
    saved: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    slope: Tensor | None,
    residual: Tensor | None,
    *,
    activation: str,
    negative_slope: float,
    reflection_pad: int,
    min_scale: float,
    from_output: bool,
    differentiable: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, weight, bias, slope and residual, in the accumulator's dtype.

    `saved` is the output y if `from_output`, else the input x. γ, β and residual that are None have gradients all the
    same: of γ = 1, β = 0 and a residual of 0. `differentiable=False` is faster.
    """
    x_hat, u = normalised(
        saved,
        mean,
        rstd,
        weight,
        bias,
        slope,
        residual,
        activation=activation,
        negative_slope=negative_slope,
        reflection_pad=reflection_pad,
        min_scale=min_scale,
        from_output=from_output,
    )
    upstream = to_accumulator(grad)
    if reflection_pad:
        upstream = torch.ops.aten.reflection_pad2d_backward(upstream, u, (reflection_pad,) * 4)
    g = ACTIVATIONS[activation].gradient(upstream, u, _slope(slope, negative_slope, u.dtype))
    gamma = _scale(weight, min_scale, g.dtype)
    through_norm = _through_norm if differentiable else _through_norm_at_once
    dx, d_weight, d_bias = through_norm(g, x_hat, rstd, gamma)
    d_slope = g.new_empty(0) if slope is None else (upstream * u.clamp(max=0)).sum((0, 2, 3))
    return dx, d_weight, d_bias, d_slope, g


def _through_norm(g: Tensor, x_hat: Tensor, rstd: Tensor, gamma: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, γ and β from that of γ · x̂ + β, as the formula says."""
    g_x_hat = g * x_hat
    centred = g - g.mean((2, 3), keepdim=True) - x_hat * g_x_hat.mean((2, 3), keepdim=True)
    factor = _planes(rstd) if gamma is None else _planes(rstd) * _channels(gamma)
    return factor * centred, g_x_hat.sum((0, 2, 3)), g.sum((0, 2, 3))


def _through_norm_at_once(
    g: Tensor, x_hat: Tensor, rstd: Tensor, gamma: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The same by PyTorch's group norm, of x̂ with mean 0 and deviation 1: faster, and not differentiable."""
    n, c, h, w = g.shape
    layout = output_layout(g)
    x_hat, gamma = x_hat.contiguous(memory_format=layout), g.new_ones(c) if gamma is None else gamma
    dx, d_weight, d_bias = torch.ops.aten.native_group_norm_backward(
        g.contiguous(memory_format=layout),
        x_hat,
        torch.zeros_like(rstd),
        torch.ones_like(rstd),
        gamma,
        n,
        c,
        h * w,
        c,
        [True] * 3,
    )
    return dx.mul_(_planes(rstd)), d_weight, d_bias


def normalised(
    saved: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    slope: Tensor | None,
    residual: Tensor | None,
    *,
    activation: str,
    negative_slope: float,
    reflection_pad: int,
    min_scale: float,
    from_output: bool,
) -> tuple[Tensor, Tensor]:
    """x̂ and u from what was saved."""
    saved = to_accumulator(saved)
    dtype = saved.dtype
    gamma = _scale(weight, min_scale, dtype)
    shift = torch.zeros((), dtype=dtype, device=saved.device)
    if bias is not None:
        shift = shift + _channels(bias.to(dtype))
    if residual is not None:
        shift = shift + residual.to(dtype)
    if not from_output:
        x_hat = (saved - _planes(mean)) * _planes(rstd)
        return x_hat, shift + (x_hat if gamma is None else x_hat * _channels(gamma))
    pad = reflection_pad
    y = saved[:, :, pad : saved.shape[2] - pad, pad : saved.shape[3] - pad]
    inverse = ACTIVATIONS[activation].inverse
    assert inverse is not None, "save='output' was checked"
    u = inverse(y, _slope(slope, negative_slope, dtype))
    return (u - shift if gamma is None else (u - shift) / _channels(gamma)), u


def _scale(weight: Tensor | None, min_scale: float, dtype: torch.dtype) -> Tensor | None:
    """γ in `dtype`, kept at least `min_scale` away from 0; its gradient passes straight through to the weight."""
    if weight is None:
        return None
    gamma = weight.to(dtype)
    if min_scale == 0:
        return gamma
    bounded = torch.where(gamma < 0, gamma.clamp(max=-min_scale), gamma.clamp(min=min_scale))
    return bounded.detach() + (gamma - gamma.detach())


def _slope(slope: Tensor | None, negative_slope: float, dtype: torch.dtype) -> Slope:
    return negative_slope if slope is None else _channels(slope.to(dtype))


def _channels(parameter: Tensor) -> Tensor:
    """(C,) → (1, C, 1, 1)"""
    return parameter[None, :, None, None]


def _planes(statistic: Tensor) -> Tensor:
    """(N, C) → (N, C, 1, 1)"""
    return statistic[:, :, None, None]


def output_layout(x: Tensor) -> torch.memory_format:
    """The memory format of y and of ∂L/∂x: channels_last where x's channels lie side by side in memory."""
    channels_last = not x.is_contiguous() and x.stride(1) == 1
    return torch.channels_last if channels_last else torch.contiguous_format


# ---- operations, opaque to torch.compile ----------------------------------------------------------------------------

_NAME = "instance_norm_act"
_library = torch.library.Library("vologan_kernels", "FRAGMENT")
_library.define(
    "instance_norm_act(Tensor x, Tensor? weight, Tensor? bias, Tensor? slope, Tensor? residual, float eps, "
    "str activation, float negative_slope, int reflection_pad, float min_scale, str impl) -> (Tensor, Tensor, Tensor)"
)
_library.define(
    "instance_norm_act_backward(Tensor grad, Tensor saved, Tensor mean, Tensor rstd, Tensor? weight, Tensor? bias, "
    "Tensor? slope, Tensor? residual, str activation, float negative_slope, int reflection_pad, float min_scale, "
    "bool from_output, str impl) -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)


def _forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    *tensors, eps, activation, negative_slope, reflection_pad, min_scale, impl = arguments
    options = {
        "eps": eps,
        "activation": activation,
        "negative_slope": negative_slope,
        "reflection_pad": reflection_pad,
        "min_scale": min_scale,
    }
    run = implementation(_NAME, impl, tensors[0], reference_forward, lambda: _kernels().forward)
    return run(*tensors, **options)


def _backward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    *tensors, activation, negative_slope, reflection_pad, min_scale, from_output, impl = arguments
    options = {
        "activation": activation,
        "negative_slope": negative_slope,
        "reflection_pad": reflection_pad,
        "min_scale": min_scale,
        "from_output": from_output,
    }
    run = implementation(_NAME, impl, tensors[1], _reference_backward_op, lambda: _kernels().backward)
    return run(*tensors, **options)


def _reference_backward_op(*tensors: Any, **options: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`reference_backward` with the results of the operation: in the dtype and layout of what was saved."""
    _, saved, *_, residual = tensors
    dx, d_weight, d_bias, d_slope, d_residual = reference_backward(*tensors, **options, differentiable=False)
    layout = output_layout(saved)
    return (
        dx.to(saved.dtype).contiguous(memory_format=layout),
        d_weight,
        d_bias,
        d_slope,
        _no_tensor(saved) if residual is None else d_residual.to(saved.dtype, copy=True, memory_format=layout),
    )


def _kernels() -> Any:
    from vologan_kernels import instance_norm_triton

    return instance_norm_triton


def _fake_forward(x: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    *_, reflection_pad, _, _ = arguments
    n, c, h, w = x.shape
    shape = (n, c, h + 2 * reflection_pad, w + 2 * reflection_pad)
    statistics = torch.float64 if x.dtype == torch.float64 else torch.float32
    y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=output_layout(x))
    return y, x.new_empty((n, c), dtype=statistics), x.new_empty((n, c), dtype=statistics)


def _fake_backward(
    grad: Tensor, saved: Tensor, mean: Tensor, *arguments: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    *_, slope, residual, _, _, reflection_pad, _, from_output, _ = arguments
    n, c, h, w = saved.shape
    inset = 2 * reflection_pad if from_output else 0
    shape, layout = (n, c, h - inset, w - inset), output_layout(saved)
    dx = torch.empty(shape, dtype=saved.dtype, device=saved.device, memory_format=layout)
    d_residual = _no_tensor(saved) if residual is None else torch.empty_like(dx)
    d_slope = _no_tensor(saved) if slope is None else mean.new_empty(c)
    return dx, mean.new_empty(c), mean.new_empty(c), d_slope, d_residual


def _no_tensor(like: Tensor) -> Tensor:
    """What an operation returns for a gradient that nobody asked for: a schema has no optional results."""
    return like.new_empty(0)


_library.impl("instance_norm_act", _forward, "CompositeExplicitAutograd")
_library.impl("instance_norm_act_backward", _backward, "CompositeExplicitAutograd")
torch.library.register_fake("vologan_kernels::instance_norm_act", _fake_forward, lib=_library)
torch.library.register_fake("vologan_kernels::instance_norm_act_backward", _fake_backward, lib=_library)


# ---- autograd -------------------------------------------------------------------------------------------------------


class _NormAct(torch.autograd.Function):
    """(y, mean, rstd). The statistics are outputs because a second derivative runs through them."""

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        *arguments, _from_output, impl = inputs
        return torch.ops.vologan_kernels.instance_norm_act(*arguments, impl)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        x, weight, bias, slope, residual, _eps, *ctx.options, ctx.impl = inputs
        y, mean, rstd = output
        activation, _, pad, _, from_output = ctx.options
        ctx.set_materialize_grads(False)
        # Where nothing follows the sum, its other operand is not needed and gets the gradient as it is.
        ctx.just_adds = residual is not None and activation == "identity" and pad == 0 and not from_output
        if torch.compiler.is_compiling():  # which has no second derivatives, but would compute with gradients of zero
            ctx.mark_non_differentiable(mean, rstd)
        needed = None if ctx.just_adds else residual
        ctx.save_for_backward(y if from_output else x, mean, rstd, weight, bias, slope, needed)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, grad_mean: Tensor | None, grad_rstd: Tensor | None) -> Any:
        tensors = ctx.saved_tensors  # read once: activation checkpointing allows no more
        saved, _, rstd, weight, bias, slope, residual = tensors
        if grad is None:
            grad = _zero_gradient(saved, *ctx.options)
        twice = torch.is_grad_enabled() and not torch.compiler.is_compiling()  # create_graph=True
        gradients = _NormActBackward.apply if twice else torch.ops.vologan_kernels.instance_norm_act_backward
        dx, d_weight, d_bias, d_slope, d_residual = gradients(grad, *tensors, *ctx.options, ctx.impl)
        if ctx.just_adds:
            d_residual = grad
        if grad_mean is not None or grad_rstd is not None:
            x_hat, _ = normalised(*tensors, **dict(zip(_OPTIONS, ctx.options, strict=True)))
            dx = dx + _gradient_of_statistics(grad_mean, grad_rstd, rstd, x_hat).to(dx.dtype)
        return (
            dx,
            None if weight is None else d_weight.to(weight.dtype),
            None if bias is None else d_bias.to(bias.dtype),
            None if slope is None else d_slope.to(slope.dtype),
            d_residual if ctx.just_adds or residual is not None else None,
            *[None] * (2 + len(_OPTIONS)),
        )


_OPTIONS = ("activation", "negative_slope", "reflection_pad", "min_scale", "from_output")
"""Of the backward, in the order of its operation."""


def _zero_gradient(saved: Tensor, activation: str, slope: float, pad: int, scale: float, from_output: bool) -> Tensor:
    """Of y, where only the statistics were used."""
    n, c, h, w = saved.shape
    grow = 0 if from_output else 2 * pad
    return saved.new_zeros(n, c, h + grow, w + grow)


def _gradient_of_statistics(grad_mean: Tensor | None, grad_rstd: Tensor | None, rstd: Tensor, x_hat: Tensor) -> Tensor:
    """Of x, with ∂μ/∂x = 1 / HW and ∂rstd/∂x = −rstd² · x̂ / HW."""
    gradient = torch.zeros_like(x_hat)
    if grad_mean is not None:
        gradient = gradient + _planes(grad_mean)
    if grad_rstd is not None:
        gradient = gradient - _planes(grad_rstd * rstd.square()) * x_hat
    return gradient / (x_hat.shape[2] * x_hat.shape[3])


class _NormActBackward(torch.autograd.Function):
    """The gradients as a function of their own, whose derivative is that of `reference_backward`."""

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        return torch.ops.vologan_kernels.instance_norm_act_backward(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        tensors, options = inputs[: -1 - len(_OPTIONS)], inputs[-1 - len(_OPTIONS) : -1]
        ctx.options = dict(zip(_OPTIONS, options, strict=True))
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor | None) -> Any:
        # Leaves of their own: y, mean and rstd are results of x, and a gradient must not run past them to x here.
        leaves: list[Any] = [None if tensor is None else tensor.detach() for tensor in ctx.saved_tensors]
        wanted = [i for i in range(len(leaves)) if ctx.needs_input_grad[i]]
        for i in wanted:
            leaves[i].requires_grad_()
        with torch.enable_grad():
            outputs = reference_backward(*leaves, **ctx.options)
        used = [
            (output, grad.to(output.dtype))
            for output, grad in zip(outputs, upstream, strict=True)
            if grad is not None and grad.numel() == output.numel() and output.requires_grad
        ]
        gradients: list[Tensor | None] = [None] * len(ctx.needs_input_grad)
        if used:
            values, grads = zip(*used, strict=True)
            found = torch.autograd.grad(values, [leaves[i] for i in wanted], grads, allow_unused=True)
            for i, gradient in zip(wanted, found, strict=True):
                gradients[i] = gradient
        return tuple(gradients)


# ---- what users call ------------------------------------------------------------------------------------------------


def instance_norm_act(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    eps: float = 1e-5,
    activation: str = "identity",
    negative_slope: float | Tensor = 0.01,
    residual: Tensor | None = None,
    reflection_pad: int = 0,
    min_scale: float = 0.0,
    save: str = "auto",
    impl: str = "auto",
) -> Tensor:
    """Instance norm over the last two dimensions of x (N, C, H, W), plus `residual`, activation, reflection padding.

    `weight` (γ) and `bias` (β) have shape (C,); None stands for 1 and 0. `negative_slope` is a number for leaky_relu,
    and for prelu a tensor of C values or one. `residual` has x's shape and is added before the activation. The result
    is (N, C, H + 2·reflection_pad, W + 2·reflection_pad) in x's dtype: channels_last where x's channels lie side by
    side in memory, else contiguous.

    `min_scale` keeps γ away from 0: γ between ±min_scale acts as ±min_scale, its gradient as if it were not so.
    `save`: what is kept for the backward, "input" or "output"; "auto" keeps the output where x̂ comes back from it
    exactly enough: the activation is identity or leaky_relu, there is no `weight` or a `min_scale`, and no `residual`
    that x̂ might drown in. `impl`: "triton" (on CPU tensors only in Triton's interpreter, TRITON_INTERPRET=1),
    "reference" (plain PyTorch), or "auto": Triton on a GPU.

    Differentiable twice. Raises ValueError for arguments that do not fit, naming the argument.
    """
    slope = None
    if isinstance(negative_slope, Tensor):
        slope = negative_slope.expand(x.shape[1]) if negative_slope.numel() == 1 else negative_slope
        negative_slope = 0.0
    _check(x, weight, bias, slope, residual, eps, activation, reflection_pad, min_scale)
    if residual is not None:
        residual = residual.to(x.dtype)
    from_output = _saves_output(save, activation, negative_slope, weight, min_scale, residual is not None)
    check_implementation(_NAME, impl, x)
    tensors = (x, weight, bias, slope, residual)
    options = (float(eps), activation, float(negative_slope), reflection_pad, float(min_scale))
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors):
        y, _, _ = _NormAct.apply(*tensors, *options, from_output, impl)
    else:  # torch.compile cannot trace a Function where nothing requires a gradient (torch 2.13)
        y, _, _ = torch.ops.vologan_kernels.instance_norm_act(*tensors, *options, impl)
    return y


def _check(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    slope: Tensor | None,
    residual: Tensor | None,
    eps: float,
    activation: str,
    reflection_pad: int,
    min_scale: float,
) -> None:
    if x.dim() != 4 or not x.is_floating_point():
        _refuse(f"x must be a floating-point (N, C, H, W) tensor, found {x.dtype} {tuple(x.shape)}")
    if activation not in ACTIVATIONS:
        _refuse(f"activation must be one of {', '.join(ACTIVATIONS)}, found {activation!r}")
    if (activation == "prelu") != (slope is not None):
        _refuse("prelu takes negative_slope as a tensor of C values or one, the other activations as a number")
    for name, parameter in (("weight", weight), ("bias", bias), ("negative_slope", slope)):
        if parameter is not None and parameter.shape != x.shape[1:2]:
            _refuse(f"{name} must have shape ({x.shape[1]},), found {tuple(parameter.shape)}")
    if residual is not None and residual.shape != x.shape:
        _refuse(f"residual must have x's shape {tuple(x.shape)}, found {tuple(residual.shape)}")
    for name, number in (("eps", eps), ("min_scale", min_scale)):
        if not (math.isfinite(number) and number >= 0):
            _refuse(f"{name} must be a finite number, at least 0; found {number}")
    if not 0 <= reflection_pad < min(*x.shape[2:], reflection_pad + 1):
        _refuse(
            f"reflection_pad must be at least 0 and less than both sides of x, found {reflection_pad} for {x.shape}"
        )


def _saves_output(
    save: str, activation: str, negative_slope: float, weight: Tensor | None, min_scale: float, adds: bool
) -> bool:
    can = invertible(activation, negative_slope)
    if save == "auto":
        return can and not adds and (weight is None or min_scale > 0)
    if save not in ("input", "output"):
        _refuse(f"save must be auto, input or output, found {save!r}")
    if save == "output" and not can:
        _refuse(f"save='output': {activation} (negative_slope {negative_slope}) cannot be inverted; use input or auto")
    return save == "output"


def _refuse(sentence: str) -> None:
    raise ValueError(f"{_NAME}: {sentence}")


class InstanceNormAct2d(nn.InstanceNorm2d):
    """`nn.InstanceNorm2d` and what follows it: (residual,) activation, reflection padding.

    The arguments up to `bias`, the parameters, running statistics and eval mode are those of `nn.InstanceNorm2d`, whose
    state it loads; the others are those of `instance_norm_act`. `prelu` adds a parameter `slope` (C,), initially
    `negative_slope`. Takes (N, C, H, W) or (C, H, W).
    """

    slope: nn.Parameter | None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = False,
        track_running_stats: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        activation: str = "identity",
        negative_slope: float = 0.01,
        reflection_pad: int = 0,
        min_scale: float = 0.0,
        save: str = "auto",
        impl: str = "auto",
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype)
        if not bias:  # torch takes this argument from 2.13 on
            self.register_parameter("bias", None)
        if activation not in ACTIVATIONS:
            _refuse(f"activation must be one of {', '.join(ACTIVATIONS)}, found {activation!r}")
        self.activation = activation
        self.negative_slope = negative_slope
        self.reflection_pad = reflection_pad
        self.min_scale = min_scale
        self.save = save
        self.impl = impl
        slopes = torch.full((num_features,), negative_slope, device=device, dtype=dtype)
        self.slope = nn.Parameter(slopes) if activation == "prelu" else None

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        if x.dim() == 3:
            return self.forward(x[None], None if residual is None else residual[None])[0]
        if x.dim() != 4 or x.shape[1] != self.num_features:
            _refuse(f"x must be (N, {self.num_features}, H, W) or ({self.num_features}, H, W), found {tuple(x.shape)}")
        if self.track_running_stats:
            if not self.training:
                return self._by_running_statistics(x, residual)
            self._track(x)
        return instance_norm_act(
            x,
            self.weight,
            self.bias,
            eps=self.eps,
            activation=self.activation,
            negative_slope=self.negative_slope if self.slope is None else self.slope,
            residual=residual,
            reflection_pad=self.reflection_pad,
            min_scale=self.min_scale,
            save=self.save,
            impl=self.impl,
        )

    @torch.no_grad()
    def _track(self, x: Tensor) -> None:
        """Move the running statistics towards the batch's: means over the samples, unbiased variance, as torch does."""
        variance, mean = torch.var_mean(to_accumulator(x), (2, 3))
        for running, now in ((self.running_mean, mean), (self.running_var, variance)):
            assert running is not None
            running.lerp_(now.mean(0).to(running.dtype), self.momentum or 0.0)

    def _by_running_statistics(self, x: Tensor, residual: Tensor | None) -> Tensor:
        """Eval mode with `track_running_stats`: an affine map, left to PyTorch."""
        gamma = None if self.weight is None else _scale(self.weight, self.min_scale, self.weight.dtype)
        u = F.batch_norm(x, self.running_mean, self.running_var, gamma, self.bias, False, 0.0, self.eps)
        if residual is not None:
            u = u + residual
        slope = _slope(self.slope, self.negative_slope, u.dtype)
        y = ACTIVATIONS[self.activation].function(u, slope)
        return F.pad(y, (self.reflection_pad,) * 4, mode="reflect") if self.reflection_pad else y

    def extra_repr(self) -> str:
        options = {
            "activation": (self.activation, "identity"),
            "negative_slope": (self.negative_slope, 0.01),
            "reflection_pad": (self.reflection_pad, 0),
            "min_scale": (self.min_scale, 0.0),
            "save": (self.save, "auto"),
            "impl": (self.impl, "auto"),
        }
        changed = [f"{name}={value}" for name, (value, default) in options.items() if value != default]
        return ", ".join([super().extra_repr(), *changed])
