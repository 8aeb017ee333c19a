"""The instance norm as an operation of `torch.library`, its gradients, and the function that users call."""

from __future__ import annotations

import functools
import math
import sys
import warnings
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from vologan_kernels.activations import ACTIVATIONS, invertible
from vologan_kernels.dispatch import (
    check_implementation,
    distinct,
    implementation,
    is_batched,
    is_plain,
    launches_directly,
    only_standard_operations,
    runs_natively,
    unobserved,
)
from vologan_kernels.instance_norm import native, reference
from vologan_kernels.layouts import output_layout
from vologan_kernels.precision import accumulator_of, refuse_complex

# ---- operations, opaque to torch.compile ----------------------------------------------------------------------------

_NAME = "instance_norm_act"

# As torch does for its own modules: only checks of arguments compare sizes, and no check may be in a trace.
warnings.filterwarnings("ignore", category=torch.jit.TracerWarning, module=r"vologan_kernels\.instance_norm")
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


class Options(NamedTuple):
    """The backward's arguments that are not tensors, except `impl`, in the order of the operation's schema."""

    activation: str
    negative_slope: float
    reflection_pad: int
    min_scale: float
    from_output: bool


class Saved(NamedTuple):
    """The tensors that the backward reads, except the gradient, in the order of the operation's schema."""

    kept: Tensor
    """The output y if `from_output`, else the input x."""
    mean: Tensor
    rstd: Tensor
    weight: Tensor | None
    bias: Tensor | None
    slope: Tensor | None
    residual: Tensor | None


def _forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    x, impl = arguments[0], arguments[-1]
    if x.numel() > 0 and runs_natively(impl, x):
        return native.forward(*arguments[:-1])
    run = implementation(_NAME, impl, x, reference.forward, lambda: _kernels().forward)
    return run(*arguments[:-1])


def _backward(grad: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """The gradients of x, weight, bias, slope and residual. Those of the last two are None without them."""
    saved, impl = arguments[0], arguments[-1]
    if saved.numel() > 0 and runs_natively(impl, saved):
        return native.backward(grad, *arguments[:-1])
    run = implementation(_NAME, impl, saved, _reference_backward, lambda: _kernels().backward)
    return run(grad, *arguments[:-1])


def _reference_backward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """`reference.backward`, with gradients of x and residual in the dtype and layout of the saved tensor."""
    saved, slope, residual = arguments[1], arguments[6], arguments[7]
    dx, d_weight, d_bias, d_slope, d_residual = reference.backward(*arguments, differentiable=False)
    layout = output_layout(saved)
    return (
        dx.to(saved.dtype).contiguous(memory_format=layout),
        d_weight,
        d_bias,
        None if slope is None else d_slope,
        None if residual is None else d_residual.to(saved.dtype, copy=True, memory_format=layout),
    )


def _backward_operation(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`_backward` with empty tensors in place of gradients that do not exist: a schema has no optional results."""
    dx, d_weight, d_bias, d_slope, d_residual = _backward(*arguments)
    nothing = dx.new_empty(0)
    return dx, d_weight, d_bias, nothing if d_slope is None else d_slope, nothing if d_residual is None else d_residual


@functools.cache  # an import statement in each call would take as long as a small operation
def _kernels() -> Any:
    from vologan_kernels.instance_norm import kernels

    return kernels


def _fake_forward(x: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    *_, reflection_pad, _, _ = arguments
    n, c, h, w = x.shape
    shape = (n, c, h + 2 * reflection_pad, w + 2 * reflection_pad)
    statistics = accumulator_of(x)
    y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=output_layout(x))
    return y, x.new_empty((n, c), dtype=statistics), x.new_empty((n, c), dtype=statistics)


def _fake_backward(grad: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    count = len(Saved._fields)
    saved, options = Saved(*arguments[:count]), Options(*arguments[count:-1])
    kept = saved.kept
    n, c, h, w = kept.shape
    inset = 2 * options.reflection_pad if options.from_output else 0
    shape, layout = (n, c, h - inset, w - inset), output_layout(kept)
    dx = torch.empty(shape, dtype=kept.dtype, device=kept.device, memory_format=layout)
    d_weight, d_bias = (saved.mean.new_empty(c) for _ in range(2))
    d_slope = dx.new_empty(0) if saved.slope is None else saved.mean.new_empty(c)
    d_residual = dx.new_empty(0) if saved.residual is None else torch.empty_like(dx)
    return dx, d_weight, d_bias, d_slope, d_residual


_library.impl("instance_norm_act", _forward, "CompositeExplicitAutograd")
_library.impl("instance_norm_act_backward", _backward_operation, "CompositeExplicitAutograd")
torch.library.register_fake("vologan_kernels::instance_norm_act", _fake_forward, lib=_library)
torch.library.register_fake("vologan_kernels::instance_norm_act_backward", _fake_backward, lib=_library)


def _operate(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The operation, or what it would do."""
    if launches_directly(arguments[-1], *arguments[:5], native=True):
        return _forward(*arguments)
    return torch.ops.vologan_kernels.instance_norm_act(*arguments)


def _operate_backward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """The operation of the backward, or what it would do."""
    if launches_directly(arguments[-1], *arguments[:8], native=True):
        return _backward(*arguments)
    return torch.ops.vologan_kernels.instance_norm_act_backward(*arguments)


# ---- autograd -------------------------------------------------------------------------------------------------------


class _NormAct(torch.autograd.Function):
    """The forward as an autograd function. It also returns mean and rstd, which second derivatives need.

    The context is an argument of the forward. With a `setup_context`, PyTorch would bind the arguments to the signature
    in every call, which takes as long as ten small operations (torch 2.13). torch.func would need a `setup_context`,
    but it gets standard operations.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        slope: Tensor | None,
        residual: Tensor | None,
        eps: float,
        options: Options,
        impl: str,
        at_once: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        activation, negative_slope, pad, min_scale, from_output = options
        arguments = x, weight, bias, slope, residual, eps, activation, negative_slope, pad, min_scale
        y, mean, rstd = (_forward if at_once else _operate)(*arguments, impl)
        ctx.options, ctx.impl, ctx.at_once = options, impl, at_once
        ctx.set_materialize_grads(False)
        # If nothing follows the sum, the backward does not need the residual, and its gradient is the gradient of y.
        ctx.just_adds = residual is not None and activation == "identity" and pad == 0 and not from_output
        if torch.compiler.is_compiling():  # compiled code has no second derivatives, and would only compute with zeros
            ctx.mark_non_differentiable(mean, rstd)
        kept = y if from_output else x
        ctx.save_for_backward(kept, mean, rstd, weight, bias, slope, None if ctx.just_adds else residual)  # as Saved
        return y, mean, rstd

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, grad_mean: Tensor | None, grad_rstd: Tensor | None) -> Any:
        saved = Saved(*ctx.saved_tensors)  # read only once, as activation checkpointing requires
        options: Options = ctx.options
        kept, weight, bias, slope = saved.kept, saved.weight, saved.bias, saved.slope
        if grad is None:
            grad = _zero_gradient(kept, options)
        if ctx.at_once and is_plain(grad) and not torch.is_grad_enabled() and unobserved():
            found: Any = _backward(grad, *saved, *options, ctx.impl)
        elif is_batched(grad) or only_standard_operations():
            found = reference.backward(grad, *saved, *options)
        elif torch.is_grad_enabled() and not torch.compiler.is_compiling():  # create_graph=True
            found = _NormActBackward.apply(grad, *saved, *options, ctx.impl)
        else:
            found = _operate_backward(grad, *saved, *options, ctx.impl)
        dx, d_weight, d_bias, d_slope, d_residual = found
        if grad_mean is not None or grad_rstd is not None:
            x_hat, _ = reference.normalised(*saved, *options)
            dx = dx + _gradient_of_statistics(grad_mean, grad_rstd, saved.rstd, x_hat).to(dx.dtype)
        if ctx.just_adds:
            d_residual = grad
        return (
            _in(dx, kept.dtype),
            None if weight is None else _in(d_weight, weight.dtype),
            None if bias is None else _in(d_bias, bias.dtype),
            None if slope is None else _in(d_slope, slope.dtype),
            _in(d_residual, kept.dtype) if ctx.just_adds or saved.residual is not None else None,
            None,  # eps
            None,  # options
            None,  # impl
            None,  # at_once
        )


def _in(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """`tensor` in `dtype`. `Tensor.to` would take its time even if nothing is to do."""
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def _zero_gradient(kept: Tensor, options: Options) -> Tensor:
    """The gradient of y if only the statistics were used."""
    n, c, h, w = kept.shape
    grow = 0 if options.from_output else 2 * options.reflection_pad
    return kept.new_zeros(n, c, h + grow, w + grow)


def _gradient_of_statistics(grad_mean: Tensor | None, grad_rstd: Tensor | None, rstd: Tensor, x_hat: Tensor) -> Tensor:
    """The part of ∂L/∂x that comes through the statistics: ∂μ/∂x = 1 / HW and ∂rstd/∂x = −rstd² · x̂ / HW."""
    gradient = torch.zeros_like(x_hat)
    if grad_mean is not None:
        gradient = gradient + reference.by_plane(grad_mean)
    if grad_rstd is not None:
        gradient = gradient - reference.by_plane(grad_rstd * rstd.square()) * x_hat
    return gradient / (x_hat.shape[2] * x_hat.shape[3])


class _NormActBackward(torch.autograd.Function):
    """The backward as an autograd function. Its derivative is the derivative of `reference.backward`."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        *tensors_and_options, _impl = inputs
        count = len(Options._fields)
        ctx.options = Options(*tensors_and_options[-count:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors_and_options[:-count])  # all arguments of reference.backward, in its order
        return torch.ops.vologan_kernels.instance_norm_act_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> Any:
        # The gradients are those of views. y, mean and rstd were computed from x, but here no gradient must go through
        # them to x. With create_graph=True, third derivatives do go through the views to the tensors.
        create_graph, tensors = torch.is_grad_enabled(), ctx.saved_tensors
        wanted = [i for i in range(len(tensors)) if ctx.needs_input_grad[i]]
        with torch.enable_grad():
            views: list[Any] = [None if tensor is None else tensor.view_as(tensor) for tensor in tensors]
            outputs = reference.backward(*views, *ctx.options)
        used = [
            (output, grad.to(output.dtype))
            for output, grad in zip(outputs, upstream, strict=True)
            if grad is not None and grad.numel() == output.numel() and output.requires_grad
        ]
        gradients: list[Tensor | None] = [None] * len(ctx.needs_input_grad)
        if used:
            values, grads = zip(*used, strict=True)
            found = torch.autograd.grad(
                values, [views[i] for i in wanted], grads, allow_unused=True, create_graph=create_graph
            )
            for i, gradient in zip(wanted, found, strict=True):
                gradients[i] = gradient
        return tuple(gradients)


# ---- functions for users --------------------------------------------------------------------------------------------


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

    `weight` (γ) and `bias` (β) have shape (C,); None stands for 1 and 0. `negative_slope` is a number for leaky_relu.
    For prelu it is a tensor of C values or of one. `residual` has x's shape and is added before the activation. The
    result has shape (N, C, H + 2·reflection_pad, W + 2·reflection_pad) and x's dtype. It is channels_last if x's
    channels lie side by side in memory, else contiguous.

    `min_scale` keeps γ away from 0: a γ between −min_scale and min_scale acts as ±min_scale. The gradient of γ is
    computed as if there were no such bound.

    `save` names the tensor that is kept for the backward: "input" or "output". "auto" keeps the output if x̂ can be
    computed back from it with enough digits. For that, three conditions must hold. The activation is identity, or
    leaky_relu with a slope of at least 2⁻¹⁰. There is neither `weight` nor `bias`, or there is a `weight` with a
    `min_scale`. There is no `residual`, because a large residual would cost digits of x̂. With the output kept, x̂ is
    exact to a rounding of |x̂| + |β / γ|, so a `min_scale` is for norms whose |β / γ| stays small. The gradient of γ is
    exact to a rounding of |β / γ| · Σ |∂L/∂y|. Where the variance is far below ε, it may be smaller than that.

    `impl` is "triton", "native" (C++ for CPU tensors), "reference" (plain PyTorch), or "auto". On a GPU, "auto" is
    Triton. For CPU tensors of float32, bfloat16 or float64 it is native, if the library was built. Else it is the
    reference. For CPU tensors, "triton" works only in Triton's interpreter (TRITON_INTERPRET=1).

    The function has derivatives of all kinds (docs/kernels.md). Like torch's functions, it calls
    `__torch_function__` of its arguments: fx.symbolic_trace records one call. Raises ValueError, which names the
    argument, for an argument that does not fit.
    """
    overridable = (x, weight, bias, negative_slope, residual)
    if has_torch_function(overridable):
        return handle_torch_function(
            instance_norm_act,
            overridable,
            x,
            weight,
            bias,
            eps=eps,
            activation=activation,
            negative_slope=negative_slope,
            residual=residual,
            reflection_pad=reflection_pad,
            min_scale=min_scale,
            save=save,
            impl=impl,
        )
    slope = None
    if isinstance(negative_slope, Tensor):
        slope = negative_slope
        if slope.numel() == 1 and x.dim() == 4:
            slope = slope.expand(x.shape[1])
        negative_slope = 0.0
    tensors = (x, weight, bias, slope, residual)
    try:
        shapes = x.shape, *[None if tensor is None else tensor.shape for tensor in tensors[1:]]
        at_once = unobserved() and all(map(is_plain, tensors))
        if at_once:
            pad = reflection_pad if type(reflection_pad) is int else float(reflection_pad)
            numbers = float(eps), float(negative_slope), pad, float(min_scale)
            eps, options = _checked_once(shapes, x.dtype, activation, *numbers, save)
        else:
            _check_layouts(tensors)
            eps, options = _checked(shapes, x.dtype, activation, eps, negative_slope, reflection_pad, min_scale, save)
    except (AttributeError, TypeError, ValueError):  # here, because to ask before would take time in every call
        for name, tensor in (("x", x), ("weight", weight), ("bias", bias), ("residual", residual)):
            if not isinstance(tensor, Tensor) and (tensor is not None or name == "x"):
                refuse(f"{name} must be a tensor, found {type(tensor).__name__}")
        check_activation(activation)
        _check_numbers(eps, negative_slope, reflection_pad, min_scale)
        raise
    check_implementation(_NAME, impl, x, native=True)
    if residual is not None:
        if residual.dtype != x.dtype:
            refuse_complex(residual)
            residual = residual.to(x.dtype)
        _, residual = distinct([x, residual])
        tensors = (x, weight, bias, slope, residual)
    if not at_once and only_standard_operations():
        return reference.standard_forward(*tensors, eps, *options[:-1])
    if torch.is_grad_enabled() and _needs_gradient(*tensors):
        y, _, _ = (_apply if at_once else _NormAct.apply)(*tensors, eps, options, impl, at_once)
    else:  # torch.compile cannot trace a Function where nothing requires a gradient (torch 2.13)
        y, _, _ = (_forward if at_once else _operate)(*tensors, eps, *options[:-1], impl)
    return y


_apply = super(torch.autograd.Function, _NormAct).apply
"""`_NormAct.apply` without its questions about torch.func, for calls that nothing looks at."""


_Shapes = tuple[Any, ...]
"""Shapes of x, weight, bias, slope and residual. None stands for a tensor that is not there."""


def _checked(
    shapes: _Shapes,
    dtype: torch.dtype,
    activation: str,
    eps: float,
    negative_slope: float,
    reflection_pad: int | float,
    min_scale: float,
    save: str,
) -> tuple[float, Options]:
    """ε and the options. Raises ValueError for an argument that does not fit.

    Numbers become those that PyTorch's dispatcher would make of them, because the kernels may be called without it.
    """
    _check(shapes, dtype, activation, eps, reflection_pad, min_scale)
    if not -math.inf < negative_slope < math.inf:
        refuse(f"negative_slope must be a finite number, found {negative_slope}")
    _, weight, bias, _, residual = shapes
    from_output = _saves_output(
        save, activation, negative_slope, weight is not None, bias is not None, min_scale, residual is not None
    )
    options = Options(activation, float(negative_slope), int(reflection_pad), float(min_scale), from_output)
    return float(eps), options


_checked_once = functools.lru_cache(4096)(_checked)
"""The same, remembered. It is for numbers that are no tensors and no symbols of torch.compile."""


def _needs_gradient(*tensors: Tensor | None) -> bool:
    for tensor in tensors:  # noqa: SIM110 (a loop takes half as long as a generator)
        if tensor is not None and tensor.requires_grad:
            return True
    return False


def _check(
    shapes: _Shapes, dtype: torch.dtype, activation: str, eps: float, reflection_pad: int | float, min_scale: float
) -> None:
    shape, weight, bias, slope, residual = shapes
    if len(shape) != 4 or not dtype.is_floating_point:
        refuse(f"x must be a floating-point (N, C, H, W) tensor, found {dtype} {tuple(shape)}")
    check_activation(activation)
    if (activation == "prelu") != (slope is not None):
        refuse("prelu takes negative_slope as a tensor of C values or one, the other activations as a number")
    channels = shape[1:2]
    for name, parameter in (("weight", weight), ("bias", bias), ("negative_slope", slope)):
        if parameter is not None and parameter != channels:
            refuse(f"{name} must have shape ({shape[1]},), found {tuple(parameter)}")
    if residual is not None and residual != shape:
        refuse(f"residual must have x's shape {tuple(shape)}, found {tuple(residual)}")
    for name, number in (("eps", eps), ("min_scale", min_scale)):
        if not 0 <= number < math.inf:  # a comparison, since torch.compile may hold a symbol for the number
            refuse(f"{name} must be a finite number, at least 0; found {number}")
    if reflection_pad < 0:
        refuse(f"reflection_pad must be at least 0, found {reflection_pad}")
    if reflection_pad > 0 and (reflection_pad >= shape[2] or reflection_pad >= shape[3]):
        refuse(f"reflection_pad must be less than both sides of x, found {reflection_pad} for {tuple(shape)}")
    if reflection_pad != int(reflection_pad):
        refuse(f"reflection_pad must be a whole number, found {reflection_pad}")


def _check_layouts(tensors: Sequence[Tensor | None]) -> None:
    """Raise ValueError for a sparse tensor, or one in a layout of oneDNN."""
    for name, tensor in zip(("x", "weight", "bias", "negative_slope", "residual"), tensors, strict=True):
        if tensor is not None and tensor.layout != torch.strided:
            refuse(f"{name} must be a dense tensor, found one with layout {tensor.layout}")


def _check_numbers(eps: Any, negative_slope: Any, reflection_pad: Any, min_scale: Any) -> None:
    """Raise ValueError for an argument that is no number."""
    numbers = {"eps": eps, "negative_slope": negative_slope, "reflection_pad": reflection_pad, "min_scale": min_scale}
    for name, number in numbers.items():
        try:
            float(number)
        except (TypeError, ValueError, RuntimeError):
            refuse(f"{name} must be a number, found {number!r}")


def check_options(
    num_features: Any,
    momentum: Any,
    affine: bool,
    bias: bool,
    eps: float,
    activation: str,
    negative_slope: float,
    reflection_pad: int,
    min_scale: float,
    save: str,
) -> None:
    """Raise ValueError for options of a module that no call could take."""
    if not isinstance(num_features, Integral) or num_features < 1:
        refuse(f"num_features must be a whole number, at least 1, found {num_features!r}")
    if momentum is not None and not (isinstance(momentum, Real) and 0 <= float(momentum) <= 1):
        refuse(f"momentum must be None or a number from 0 to 1, found {momentum!r}")
    check_activation(activation)
    _check_numbers(eps, negative_slope, reflection_pad, min_scale)
    of_channels, any_size = (num_features,), sys.maxsize
    weight, offset = of_channels if affine else None, of_channels if affine and bias else None
    slope = of_channels if activation == "prelu" else None
    shapes = (1, num_features, any_size, any_size), weight, offset, slope, None
    _checked(shapes, torch.float32, activation, eps, negative_slope, reflection_pad, min_scale, save)


def check_activation(activation: str) -> None:
    """Raise ValueError for an activation that is not in the table."""
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        refuse(f"activation must be one of {', '.join(ACTIVATIONS)}, found {activation!r}")


def _saves_output(
    save: str,
    activation: str,
    negative_slope: float,
    weight: bool,
    bias: bool,
    min_scale: float,
    adds: bool,
) -> bool:
    """Whether the output is saved for the backward, and not the input. `weight`, `bias`, `adds`: what there is."""
    can = invertible(activation, negative_slope)
    if save == "auto":
        digits = min_scale > 0 if weight else not bias
        return can and digits and not adds
    if save not in ("input", "output"):
        refuse(f"save must be auto, input or output, found {save!r}")
    if save == "output" and not can:
        refuse(f"save='output': {activation} (negative_slope {negative_slope}) cannot be inverted; use input or auto")
    return save == "output"


def refuse(sentence: str) -> NoReturn:
    """Raise ValueError with a sentence about an argument."""
    raise ValueError(f"{_NAME}: {sentence}")
