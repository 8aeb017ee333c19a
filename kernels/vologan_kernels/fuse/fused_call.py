"""The call that takes the place of a norm and the steps behind it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from vologan_kernels.activations import ACTIVATIONS
from vologan_kernels.dispatch import unobserved
from vologan_kernels.fuse.convolutions import converted
from vologan_kernels.fuse.sites import Site, calls, needs_no_layout
from vologan_kernels.instance_norm import instance_norm_act


def emit(site: Site, graph: fx.Graph, modules: dict[str, nn.Module], convolution: str | None) -> None:
    """Replace the steps of a site by one call. The call reads parameters and settings when it runs.

    `convolution` names a convolution whose weight decides the layout of the result. Without one it is contiguous.
    """
    norm, last = site.steps[0], site.steps[-1]
    with graph.inserting_before(site.steps[1] if site.residual else norm):
        settings: Any
        if site.norm is None:
            settings = tuple(norm.kwargs[name] for name in ("weight", "bias", "eps"))
        else:
            settings = graph.create_node("get_attr", str(norm.target))
        slope: Any = site.activation.slope
        if site.activation.attribute:
            activation = next(step for step in site.steps[1:] if step.op == "call_module")
            slope = graph.create_node("get_attr", f"{activation.target}.{site.activation.attribute}")
        x: Any = norm.args[0] if norm.args else norm.kwargs["input"]
        near = convolution and graph.create_node("get_attr", convolution)
        call = graph.call_function(
            norm_act,
            (x, settings, site.residual, site.activation.name, slope, site.reflection_pad, site.save),
            {
                "convolution": near,
                "any_layout": needs_no_layout(last, modules),
                "of_any_layout": calls(x, norm_act) and x.kwargs["any_layout"],
                "convolved": site.convolved,
            },
        )
    last.replace_all_uses_with(call)
    for step in reversed(site.steps):
        graph.erase_node(step)


def norm_act(
    x: Tensor,
    norm: nn.InstanceNorm2d | tuple[Tensor | None, Tensor | None, float],
    residual: Any,
    activation: str,
    slope: Any,
    reflection_pad: int,
    save: str,
    *,
    convolution: nn.Module | None,
    any_layout: bool,
    of_any_layout: bool,
    convolved: bool,
) -> Tensor:
    """`instance_norm_act`, as rewritten forwards call it.

    It is as tolerant as the original code. A residual of another dtype or shape is promoted and broadcast, as in a sum
    of tensors. `norm` is a module, which takes (C, H, W), too, or γ, β and ε. For arguments that
    `instance_norm_act` does not take, and for small images on a CPU, torch's own operations run.

    torch's norm returns a contiguous tensor, also for a channels_last x. So does this one, unless the weight of
    `convolution` is channels_last. Then the model was moved to channels_last, and its convolutions return it, too. And
    unless the rewritten forward has made x channels_last itself.
    `any_layout`: only sums, means and norms read the result, so a small one may be contiguous in any case.
    `of_any_layout`: x is such a result, so its layout does not tell the model's.
    `convolved`: only convolutions read the result, so under autocast it need not be float32, as torch's padding is.
    """
    unbatched = not isinstance(norm, tuple)
    if isinstance(norm, tuple):
        weight, bias, eps = norm
    else:
        parameters, eps = norm._parameters, norm.eps
        if "weight" in parameters and "bias" in parameters:  # nn.Module takes longer to find them
            weight, bias = parameters["weight"], parameters["bias"]
        else:
            weight, bias = norm.weight, norm.bias
    dim = x.dim()
    layout = torch.contiguous_format
    if of_any_layout or not x.is_contiguous():
        if convolution is not None and (converted() or _is_channels_last(convolution)):
            layout = torch.channels_last
        else:
            x = x.contiguous()
    if x.is_cpu and x.numel() <= SMALL[layout] and dim > 2 and (dim == 4 or not unbatched) and unobserved():
        small = _group_norm(x, weight, bias, eps)
        if small is not None:
            if layout is torch.channels_last and not any_layout:
                small = small.contiguous(memory_format=layout)
            return _after_norm(small, residual, activation, slope, reflection_pad)
    if dim != 4 and not unbatched:
        y = F.instance_norm(x, weight=weight, bias=bias, eps=eps)
        return _after_norm(y, residual, activation, slope, reflection_pad)
    if dim not in (3, 4):
        nn.InstanceNorm2d(1)(x)  # raises the error of torch's module
    batch = x[None] if dim == 3 else x
    is_prelu = activation == "prelu"
    one_slope = slope.numel() == 1 if isinstance(slope, Tensor) else not is_prelu
    if (
        not batch.is_floating_point()
        or batch.layout != torch.strided  # torch's norm refuses it
        or isinstance(slope, Tensor) != is_prelu
        or not (one_slope or batch is x)  # torch's prelu takes another dimension of (C, H, W) for the channels
        or not (residual is None or _adds_to(x, residual))
        or (is_prelu and torch.is_autocast_enabled(x.device.type))  # which gives torch's prelu another type
    ):
        y = F.instance_norm(batch, weight=weight, bias=bias, eps=eps)
        return _after_norm(y if batch is x else y[0], residual, activation, slope, reflection_pad)
    if residual is not None:
        dtype = torch.promote_types(x.dtype, residual.dtype) if residual.dim() else x.dtype
        batch, residual = batch.to(dtype), residual.to(dtype).expand(batch.shape)
    y = instance_norm_act(
        batch,
        weight,
        bias,
        eps=eps,
        activation=activation,
        negative_slope=slope,
        residual=residual,
        reflection_pad=reflection_pad,
        save=save,
    )
    if reflection_pad and not convolved and x.is_cpu and y.dtype != torch.float64 and torch.is_autocast_enabled("cpu"):
        y = y.float()  # as torch's padding returns it
    return y if y.dim() == dim else y[0]


# ---- small images on a CPU ------------------------------------------------------------------------------------------

SMALL = {torch.contiguous_format: 32768, torch.channels_last: 16384}
"""Numbers up to which a CPU takes less time for torch's own operations than for one operation that Python controls.

They were measured (docs/log.md, "fuse and small images on a CPU")."""


def _group_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor | None:
    """The instance norm by torch's group norm with one channel a group; or None if that would compute something else.

    The parameters may have x's type or float32. The result is contiguous.
    """
    n, c = x.shape[:2]
    pixels = x.numel() // max(n * c, 1)
    dtype = x.dtype
    if (
        type(x) is not Tensor
        or pixels < 2  # torch's instance norm refuses it
        or not (dtype == torch.float32 or dtype == torch.bfloat16)
        or not (weight is None or weight.dtype == dtype or weight.dtype == torch.float32)
        or not (bias is None or weight is None or bias.dtype == weight.dtype)
    ):
        return None
    # For other images than contiguous ones, it computes the variance from differences of large numbers (torch 2.13).
    y: Tensor = torch.native_group_norm(x.contiguous(), weight, bias, n, c, pixels, c, eps)[0]
    return y


def _after_norm(y: Tensor, residual: Any, activation: str, slope: Any, reflection_pad: int) -> Tensor:
    """What follows the norm, by torch's own operations, one after the other."""
    if residual is not None:
        y = y + residual
    if activation != "identity":
        y = F.prelu(y, slope) if activation == "prelu" else ACTIVATIONS[activation].function(y, slope)
    return F.pad(y, (reflection_pad,) * 4, mode="reflect") if reflection_pad else y


# ---- what cannot be fused -------------------------------------------------------------------------------------------


def _is_channels_last(convolution: nn.Module) -> bool:
    """Whether the weight of a convolution is channels_last. A parametrized weight is not computed for the answer."""
    weight: Tensor | None = convolution._parameters.get("weight")
    if weight is None:  # a hook computes it, or it has a parametrization, or this is a copy by nn.DataParallel
        weight = _largest_kernels(convolution._parameters.values())
    if weight is None:
        weight = _largest_kernels((*convolution.parameters(), *vars(convolution).values()))
    return isinstance(weight, Tensor) and weight.dim() == 4 and weight.stride(1) == 1 < weight.stride(3)


def _largest_kernels(values: Iterable[Any]) -> Tensor | None:
    """The largest tensor among values that has four dimensions."""
    found: Tensor | None = None
    for value in values:  # torch.compile knows no max(key=)
        if isinstance(value, Tensor) and value.dim() == 4 and (found is None or value.numel() > found.numel()):
            found = value
    return found


def _adds_to(x: Tensor, residual: Any) -> bool:
    """Whether x + residual is a real tensor of x's shape."""
    return (
        isinstance(residual, Tensor)
        and residual.dim() <= x.dim()
        and all(here in (1, there) for here, there in zip(reversed(residual.shape), reversed(x.shape), strict=False))
        and not residual.is_complex()
    )
