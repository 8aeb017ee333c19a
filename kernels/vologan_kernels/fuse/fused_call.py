"""The call that takes the place of a norm and the steps behind it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from vologan_kernels.activations import ACTIVATIONS
from vologan_kernels.fuse.sites import Site
from vologan_kernels.instance_norm import instance_norm_act


def emit(site: Site, graph: fx.Graph, convolution: str | None) -> None:
    """Replace the steps of a site by one call. The call reads parameters and settings when it runs.

    `convolution` names a convolution whose weight decides the layout of the result. Without one it is contiguous.
    """
    norm, last = site.steps[0], site.steps[-1]
    with graph.inserting_before(site.steps[1] if site.residual else norm):
        if site.norm is None:
            weight, bias, eps = (norm.kwargs[name] for name in ("weight", "bias", "eps"))
        else:
            weight, bias, eps = (_attribute(graph, norm, name) for name in ("weight", "bias", "eps"))
        slope: Any = site.activation.slope
        if site.activation.attribute:
            module = next(step for step in site.steps[1:] if step.op == "call_module")
            slope = _attribute(graph, module, site.activation.attribute)
        options = {"eps": eps, "activation": site.activation.name, "negative_slope": slope, "residual": site.residual}
        options |= {"reflection_pad": site.reflection_pad, "save": site.save, "unbatched": site.norm is not None}
        options |= {"convolution": convolution and graph.create_node("get_attr", convolution)}
        x = norm.args[0] if norm.args else norm.kwargs["input"]
        call = graph.call_function(norm_act, (x, weight, bias), options)
    last.replace_all_uses_with(call)
    for step in reversed(site.steps):
        graph.erase_node(step)


def _attribute(graph: fx.Graph, module: fx.Node, name: str) -> fx.Node:
    return graph.create_node("get_attr", f"{module.target}.{name}")


def norm_act(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    *,
    residual: Any,
    unbatched: bool,
    convolution: nn.Module | None,
    **options: Any,
) -> Tensor:
    """`instance_norm_act`, as rewritten forwards call it.

    It is as tolerant as the original code. A residual of another dtype or shape is promoted and broadcast, as in a sum
    of tensors. With `unbatched`, x may be (C, H, W). For arguments that `instance_norm_act` does not take, torch's own
    operations run.

    torch's norm returns a contiguous tensor, also for a channels_last x. So does this one, unless the weight of
    `convolution` is channels_last. Then the model was moved to channels_last, and its convolutions return it, too.
    """
    if unbatched and x.dim() not in (3, 4):
        nn.InstanceNorm2d(1)(x)  # raises the error of torch's module
    if convolution is None or not _is_channels_last(convolution):
        x = x.contiguous()
    batch = x[None] if unbatched and x.dim() == 3 else x
    is_prelu, slope = options["activation"] == "prelu", options["negative_slope"]
    one_slope = slope.numel() == 1 if isinstance(slope, Tensor) else not is_prelu
    if (
        batch.dim() != 4
        or not batch.is_floating_point()
        or isinstance(slope, Tensor) != is_prelu
        or not (one_slope or batch is x)  # torch's prelu takes another dimension of (C, H, W) for the channels
        or not (residual is None or _adds_to(x, residual))
        or _autocast_changes_dtype(x, options)
    ):
        return _separately(x, weight, bias, residual, batch is not x, **options)
    if residual is not None:
        dtype = torch.promote_types(x.dtype, residual.dtype) if residual.dim() else x.dtype
        batch, residual = batch.to(dtype), residual.to(dtype).expand(batch.shape)
    y = instance_norm_act(batch, weight, bias, residual=residual, **options)
    return y if batch.dim() == x.dim() else y[0]


def _is_channels_last(convolution: nn.Module) -> bool:
    """Whether the weight of a convolution is channels_last. A parametrized weight is not computed for the answer."""
    weight: Tensor | None = convolution._parameters.get("weight")
    if weight is None:  # it has a parametrization, or a hook computes it, or this is a copy by nn.DataParallel
        for value in (*convolution.parameters(), *vars(convolution).values()):  # torch.compile knows no max(key=)
            if isinstance(value, Tensor) and (weight is None or value.numel() > weight.numel()):
                weight = value
    return isinstance(weight, Tensor) and weight.dim() == 4 and weight.stride(1) == 1 < weight.stride(3)


def _autocast_changes_dtype(x: Tensor, options: dict[str, Any]) -> bool:
    """Whether torch.autocast gives one of the separate operations another dtype: PReLU, or a padding on the CPU."""
    device = x.device.type
    casts = options["activation"] == "prelu" or (options["reflection_pad"] and device == "cpu")
    return bool(casts) and torch.is_autocast_enabled(device)


def _adds_to(x: Tensor, residual: Any) -> bool:
    """Whether x + residual is a real tensor of x's shape."""
    return (
        isinstance(residual, Tensor)
        and residual.dim() <= x.dim()
        and all(here in (1, there) for here, there in zip(reversed(residual.shape), reversed(x.shape), strict=False))
        and not residual.is_complex()
    )


def _separately(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Any,
    unbatched: bool,
    *,
    eps: float,
    activation: str,
    negative_slope: Any,
    reflection_pad: int,
    save: str,
) -> Tensor:
    """The same by torch's own operations, one after the other."""
    y = F.instance_norm(x[None] if unbatched else x, weight=weight, bias=bias, eps=eps)
    y = y[0] if unbatched else y
    if residual is not None:
        y = y + residual
    y = F.prelu(y, negative_slope) if activation == "prelu" else ACTIVATIONS[activation].function(y, negative_slope)
    return F.pad(y, (reflection_pad,) * 4, mode="reflect") if reflection_pad else y
