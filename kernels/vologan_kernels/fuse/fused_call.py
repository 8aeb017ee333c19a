"""The call that takes the place of a norm and the steps behind it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from vologan_kernels.fuse.sites import Site
from vologan_kernels.instance_norm import instance_norm_act


def emit(site: Site, graph: fx.Graph) -> None:
    """Replace the steps of a site by one call. The call reads parameters and settings when it runs."""
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
        call = graph.call_function(norm_act, (norm.args[0], weight, bias), options)
    last.replace_all_uses_with(call)
    for step in reversed(site.steps):
        graph.erase_node(step)


def _attribute(graph: fx.Graph, module: fx.Node, name: str) -> fx.Node:
    return graph.create_node("get_attr", f"{module.target}.{name}")


def norm_act(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, *, residual: Tensor | None, unbatched: bool, **options: Any
) -> Tensor:
    """`instance_norm_act`, as rewritten forwards call it.

    It is as tolerant as the original code. A residual of another dtype or shape is promoted and broadcast to x,
    as in a sum of tensors. With `unbatched`, x may be (C, H, W).
    """
    if residual is not None:
        dtype = torch.promote_types(x.dtype, residual.dtype) if residual.dim() else x.dtype
        x, residual = x.to(dtype), residual.to(dtype).expand(x.shape)
    if unbatched and x.dim() == 3:
        one = None if residual is None else residual[None]
        return instance_norm_act(x[None], weight, bias, residual=one, **options)[0]
    return instance_norm_act(x, weight, bias, residual=residual, **options)
