"""Convolutions of a rewritten forward, on a CPU.

oneDNN, which computes torch's convolutions there, is faster for channels_last images (docs/log.md, "Convolutions
inside a fused forward"). So large images go through a rewritten forward in channels_last, also if nobody has moved
the model to it. The fused norms keep that layout.

Outside, all is as torch has it. What the outermost rewritten forward returns is contiguous, and so are the gradients of
its inputs and parameters.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves, tree_map

from vologan_kernels import winograd
from vologan_kernels.dispatch import is_plain, only_standard_operations
from vologan_kernels.fuse.guards import has_hooks
from vologan_kernels.fuse.sites import FRESH, calls

SMALL, SMALL_WITH_FEW_OUTPUTS = 1 << 15, 1 << 17
"""Numbers of an image up to which its layout stays, and up to which its convolution with few outputs stays as it is."""

# ---- graphs ---------------------------------------------------------------------------------------------------------


def emit(graph: fx.Graph, modules: dict[str, nn.Module]) -> bool:
    """Replace the calls of torch's convolutions, and of the reflection paddings before them. Whether any was replaced.

    None is replaced in a forward whose results may be views of other tensors: their strides would follow the layout of
    those. And none where something else may compute a dilated convolution (`_suits_channels_last` says why).
    """
    found = [node for node in graph.nodes if _kind(node, modules) in (nn.Conv2d, nn.ConvTranspose2d)]
    others = [node for node in graph.nodes if node not in found]
    if _may_return_views(graph) or any(_may_dilate(node, modules) for node in others):
        return False
    pads = [
        node for node in graph.nodes if _kind(node, modules) is nn.ReflectionPad2d and set(node.users) <= set(found)
    ]
    for node in (*found, *pads):
        with graph.inserting_before(node):
            module = graph.create_node("get_attr", str(node.target))
            call = graph.call_function(convolve if node in found else pad, (module, node.args[0]))
        node.replace_all_uses_with(call)
        graph.erase_node(node)
    return bool(found)


def _kind(node: fx.Node, modules: dict[str, nn.Module]) -> type | None:
    """The class of the module that a node calls with one argument."""
    one = node.op == "call_module" and len(node.args) == 1 and not node.kwargs
    return type(modules[str(node.target)]) if one else None


def _may_return_views(graph: fx.Graph) -> bool:
    """Whether a function makes a result that may share memory with another tensor."""
    (output,) = (node for node in graph.nodes if node.op == "output")
    functions = (node for node in output.all_input_nodes if node.op in ("call_function", "call_method"))
    return any(getattr(node.target, "__name__", node.target) not in (*FRESH, "norm_act") for node in functions)


def _may_dilate(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether a node may compute a dilated convolution."""
    if node.op != "call_module":
        return calls(node, F.conv2d) and ("dilation" in node.kwargs or len(node.args) > 5)
    for module in modules[str(node.target)].modules():
        if isinstance(module, nn.Conv2d) and module.dilation != (1, 1):
            return True
        own = (base for base in type(module).__mro__ if base.__module__.partition(".")[0] not in ("torch", "builtins"))
        functions = (member for base in own for member in vars(base).values() if isinstance(member, FunctionType))
        if any("conv2d" in function.__code__.co_names for function in functions):
            return True
    return False


# ---- calls ----------------------------------------------------------------------------------------------------------


class _Inside(threading.local):
    """The rewritten forward that this thread is in."""

    running = False
    converted = False
    """Whether it has made an image channels_last."""


_inside = _Inside()


def converted() -> bool:
    """Whether images are channels_last only because the running forward has made them so."""
    return _inside.converted


def contiguous_outside(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A rewritten forward whose results are contiguous if it has made images channels_last. Others may call it."""

    @functools.wraps(forward)
    def run(*arguments: Any, **options: Any) -> Any:
        if torch.compiler.is_dynamo_compiling() or _inside.running:
            return forward(*arguments, **options)
        _inside.running = True
        try:
            results = forward(*arguments, **options)
        finally:
            changed = _inside.converted
            _inside.running = _inside.converted = False
        return _contiguous(results, (arguments, options)) if changed else results

    return run


def _contiguous(results: Any, given: Any) -> Any:
    """The results, each tensor contiguous. Those that were given stay as they are, and equal ones stay one object."""
    made = {id(value): value for value in tree_leaves(given)}

    def contiguous(value: Any) -> Any:
        if not isinstance(value, Tensor) or value.layout != torch.strided:
            return value
        if id(value) not in made:
            made[id(value)] = value.contiguous()
        return made[id(value)]

    return tree_map(contiguous, results)


def convolve(module: Any, x: Tensor) -> Tensor:
    """`module(x)` for a convolution, in the form that takes a CPU the least time."""
    y: Tensor
    if torch.compiler.is_dynamo_compiling() or (x.numel() <= SMALL and not _inside.converted) or not _is_image(x):
        y = module(x)
        return y
    last = _is_channels_last(x)
    ours = last and _inside.converted
    if not _suits_channels_last(module, x):
        y = module(x.contiguous() if ours else x)
        return y
    if not (x.numel() > SMALL or ours) or not _is_torchs(module, x) or not _is_weight(module.weight):
        y = module(x)
        return y
    weight, bias = module.weight, module.bias
    if not 1 == weight.stride(1) < weight.stride(3):  # nobody has moved it to channels_last
        if not _inside.running or (last and not ours):  # the layout is the caller's
            y = module(x)
            return y
        if not last:
            _inside.converted = True
            x = _channels_last(x)
        weight = _channels_last(weight)  # else oneDNN copies it in each direction
    if type(module) is nn.ConvTranspose2d:
        sizes: Any = module.stride, module.padding, module.output_padding, module.groups, module.dilation
        if bias is None or not (bias.requires_grad and torch.is_grad_enabled()):
            return F.conv_transpose2d(x, weight, bias, *sizes)
        y = _BiasGradient.apply(F.conv_transpose2d(x, weight, bias.detach(), *sizes), bias)
        return y
    if _is_dense(module):
        if _has_few_outputs(x, weight, module.padding):
            return _four_at_once(x, weight, bias, module.padding)
        if _is_unobserved() and winograd.is_faster(x, weight, bias, module.padding):
            return winograd.convolve(x, weight, bias, module.padding)
    return F.conv2d(x, weight, bias, module.stride, module.padding, module.dilation, module.groups)


class _BiasGradient(torch.autograd.Function):
    """Give a bias that was added to y its gradient.

    In the backward of a transposed convolution, oneDNN needs longer for that sum than for all else (docs/log.md).
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, bias: Tensor) -> Tensor:
        ctx.dtype = bias.dtype
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        return grad, grad.sum((0, 2, 3)).to(ctx.dtype)


def pad(module: Any, x: Tensor) -> Tensor:
    """`module(x)` for a reflection padding whose result only convolutions read.

    Under autocast for the CPU, torch pads in float32, and the convolution converts the result back. The values are the
    same without that.
    """
    if (
        _is_image(x)
        and x.numel() > SMALL
        and torch.is_autocast_enabled("cpu")
        and x.dtype == torch.bfloat16
        and _is_torchs(module, x)
    ):
        with torch.autocast("cpu", enabled=False):
            return F.pad(x, module.padding, mode="reflect")
    y: Tensor = module(x)
    return y


def _is_image(x: Tensor) -> bool:
    if torch.compiler.is_compiling() or only_standard_operations():
        return False
    return x.is_cpu and x.dim() == 4 and is_plain(x)


def _is_channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def _suits_channels_last(module: Any, x: Tensor) -> bool:
    """Whether oneDNN computes right gradients for channels_last images.

    In a dilated convolution in bfloat16, it leaves parts of the gradient of the weight unwritten for more than 32
    channels that are no multiple of 16 (docs/log.md).
    """
    return _dtype(x) != torch.bfloat16 or module.dilation == (1, 1)


def _is_weight(weight: Any) -> bool:
    return isinstance(weight, Tensor) and weight.dim() == 4 and is_plain(weight)


def _dtype(x: Tensor) -> torch.dtype:
    """The type in which a convolution computes."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype


_FORWARDS = {kind: kind.forward for kind in (nn.Conv2d, nn.ConvTranspose2d, nn.ReflectionPad2d)}
_CONV_FORWARD, _CONV2D = nn.Conv2d._conv_forward, F.conv2d
"""Other code may have replaced these."""


def _is_torchs(module: Any, x: Tensor) -> bool:
    """Whether `module(x)` runs an operation of oneDNN, or a padding, and nothing else."""
    kind, own, dtype = type(module), vars(module), _dtype(x)
    return (
        kind.forward is _FORWARDS.get(kind)
        and nn.Conv2d._conv_forward is _CONV_FORWARD
        and not ("forward" in own or "_conv_forward" in own or has_hooks(module))
        and getattr(module, "padding_mode", "zeros") == "zeros"
        and (dtype == torch.float32 or dtype == torch.bfloat16)
        and torch.backends.mkldnn.is_available()
        and torch._C._get_mkldnn_enabled()
    )


def _is_dense(module: nn.Conv2d) -> bool:
    """Whether a convolution computes each pixel from all of its neighbours and from all channels."""
    padding: Any = module.padding
    return (
        module.stride == (1, 1)
        and module.dilation == (1, 1)
        and module.groups == 1
        and type(padding) is tuple
        and [*map(type, padding)] == [int, int]
        and F.conv2d is _CONV2D
    )


def _is_unobserved() -> bool:
    """Whether nothing converts the tensors of an operation, or counts it by its name."""
    return not (torch.is_autocast_enabled("cpu") or torch._C._len_torch_dispatch_stack())


def _channels_last(tensor: Tensor) -> Tensor:
    """A contiguous tensor as channels_last, with a contiguous gradient, because that of the rows in between is.

    `autograd.grad` returns gradients as they come.
    """
    return tensor.flatten(1).view(tensor.shape).contiguous(memory_format=torch.channels_last)


# ---- few outputs ----------------------------------------------------------------------------------------------------


def _has_few_outputs(x: Tensor, weight: Tensor, padding: tuple[int, ...]) -> bool:
    """Whether `_four_at_once` computes a convolution of stride 1, in less time than torch does."""
    out, _, _, columns = weight.shape
    if not (out <= 4 and columns >= 7 and x.numel() > SMALL_WITH_FEW_OUTPUTS):
        return False
    return (x.shape[3] + 2 * padding[1] - columns + 1) % 4 == 0


def _four_at_once(x: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, ...]) -> Tensor:
    """The convolution of x (N, I, H, W) with weight (O, I, k, l), by one with 4 · O outputs and a stride of 4 pixels.

    oneDNN computes 16 outputs in the time of one. So four pixels of a row become channels. Each has its own copy of the
    kernel, moved to its place in a kernel of l + 3 columns. The products are the same, and others with 0.
    """
    out, channels, height, width = weight.shape
    moved = torch.stack([F.pad(weight, (place, 3 - place)) for place in range(4)], 1)
    weight = moved.reshape(4 * out, channels, height, width + 3)
    bias = None if bias is None else bias.repeat_interleave(4)
    y = F.conv2d(x, weight, bias, stride=(1, 4), padding=padding)
    n, _, h, w = y.shape
    return y.view(n, out, 4, h, w).permute(0, 3, 4, 2, 1).reshape(n, h, 4 * w, out).permute(0, 3, 1, 2)
