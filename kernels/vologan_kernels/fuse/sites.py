"""Norms in a graph, and the steps behind them that one operation can do."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils import parametrize

from vologan_kernels.activations import invertible
from vologan_kernels.fuse.guards import Guards, has_hooks
from vologan_kernels.fuse.tracing import IN_PLACE


@dataclass(frozen=True)
class Activation:
    """An activation in a model, by its name in `activations.py`."""

    name: str = "identity"
    slope: float = 0.01
    attribute: str = ""
    """The attribute of the activation's module that holds the slope; "" if there is none."""

    def __str__(self) -> str:
        return f"leaky_relu({self.slope:g})" if self.name == "leaky_relu" else self.name


@dataclass(frozen=True)
class Site:
    """A norm and the steps behind it that one operation can do."""

    steps: tuple[fx.Node, ...]
    """The nodes of the graph; the norm is the first."""
    norm: nn.InstanceNorm2d | None
    """The module, or None if the norm is a call of F.instance_norm."""
    residual: fx.Node | None
    activation: Activation
    reflection_pad: int
    save: str
    convolved: bool
    """Whether only convolutions read the result."""

    def operation(self) -> str:
        """The fused operation in words."""
        parts = ["instance norm"]
        parts += ["residual"] if self.residual else []
        parts += [str(self.activation)] if self.activation.name != "identity" else []
        parts += [f"reflection_pad({self.reflection_pad})"] if self.reflection_pad else []
        return " + ".join(parts)

    def keeps(self) -> str:
        """The tensor that is kept for the backward: "input" or "output"."""
        call = self.steps[0].kwargs
        weight, bias = (
            (call.get("weight"), call.get("bias")) if self.norm is None else (self.norm.weight, self.norm.bias)
        )
        can = weight is None and bias is None and invertible(self.activation.name, self.activation.slope)
        return "output" if can and self.save == "auto" else "input"


_MODULES: dict[type[nn.Module], Callable[[Any], Activation | None]] = {
    nn.ReLU: lambda module: Activation("relu"),
    nn.LeakyReLU: lambda module: Activation("leaky_relu", module.negative_slope, "negative_slope"),
    nn.PReLU: lambda module: Activation("prelu", attribute="weight"),
    nn.SiLU: lambda module: Activation("silu"),
    nn.GELU: lambda module: Activation("gelu") if module.approximate == "none" else None,
    nn.ELU: lambda module: Activation("elu") if module.alpha == 1 else None,
    nn.Tanh: lambda module: Activation("tanh"),
}

_FUNCTIONS: dict[Any, str] = {
    **dict.fromkeys((F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_"), "relu"),
    **dict.fromkeys((F.leaky_relu, F.leaky_relu_), "leaky_relu"),
    F.silu: "silu",
    F.gelu: "gelu",
    **dict.fromkeys((F.elu, F.elu_), "elu"),
    **dict.fromkeys((torch.tanh, torch.tanh_, "tanh", "tanh_"), "tanh"),
}
"""Functions, and the names of methods of a tensor."""


_CONVOLUTIONS = {nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d}
"""Convolutions that do not write into their input. A subclass might."""


def find_site(norm: fx.Node, modules: dict[str, nn.Module]) -> Site:
    """The norm at a node, with the steps behind it that one operation can do."""
    steps, residual, activation, reflection_pad = [norm], None, Activation(), 0
    if (user := _only_user(norm)) and (residual := _residual(user, norm, modules)):
        steps.append(user)
    if (user := _only_user(steps[-1])) and (found := _activation(user, modules)):
        steps.append(user)
        activation = found
    if (user := _only_user(steps[-1])) and (reflection_pad := _reflection_pad(user, modules)):
        steps.append(user)
    owner = modules[str(norm.target)] if norm.op == "call_module" else None
    assert owner is None or isinstance(owner, nn.InstanceNorm2d)
    save = "auto" if residual is None and _is_kept(steps[-1], modules) else "input"
    convolved = all(_convolves(user, modules) for user in steps[-1].users)
    return Site(tuple(steps), owner, residual, activation, reflection_pad, save, convolved)


def _only_user(node: fx.Node) -> fx.Node | None:
    users = list(node.users)
    return users[0] if len(users) == 1 else None


def _residual(add: fx.Node, norm: fx.Node, modules: dict[str, nn.Module]) -> fx.Node | None:
    """The tensor that `add` adds to the norm; None if `add` is no plain sum, or if it writes into that tensor."""
    operands = add.args
    if len(operands) != 2 or add.kwargs or not calls(add, operator.add, IN_PLACE["iadd"], torch.add, "add", "add_"):
        return None
    writes = calls(add, IN_PLACE["iadd"], "add_")
    if operands[0] is not norm and writes:
        return None
    other = operands[1] if operands[0] is norm else operands[0]
    if not isinstance(other, fx.Node) or other is norm or _is_used_between(norm, add, modules):
        return None
    nodes = list(add.graph.nodes)
    later = nodes[nodes.index(add) + 1 :]
    # The fused operation keeps its residual for the backward.
    if any(_may_write(user, modules) for user in other.users if user is not add):
        return None
    return None if _may_write_into(other, later, modules) else other


def _may_write_into(tensor: fx.Node, nodes: list[fx.Node], modules: dict[str, nn.Module]) -> bool:
    """Whether one of these nodes may write into the memory of a tensor."""
    writers = [node for node in nodes if _may_write(node, modules)]
    if not writers:
        return False
    aliases = _aliases(tensor, modules)
    return any(not aliases.isdisjoint(writer.all_input_nodes) for writer in writers)


def _may_write(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether a node may write into an argument."""
    if node.op == "call_module":
        module = modules[str(node.target)]
        return any(getattr(each, "inplace", False) or not _is_torchs(each) for each in module.modules())
    name = str(getattr(node.target, "__name__", node.target))
    return node.op in ("call_function", "call_method") and (
        node.target in IN_PLACE.values()
        or node.target is operator.setitem
        or node.kwargs.get("inplace", False) is not False
        or "out" in node.kwargs
        or True in [argument for argument in node.args if isinstance(argument, bool)]  # F.relu(x, True)
        or (name.endswith("_") and not name.endswith("__"))
    )


FRESH = {"add", "sub", "mul", "truediv", "div", "neg", "cat", "stack", "conv2d", "conv_transpose2d", "instance_norm"}
FRESH |= {"relu", "leaky_relu", "silu", "gelu", "elu", "prelu", "tanh", "sigmoid", "mean", "sum"}
FRESH |= {"clamp", "exp", "interpolate", "softmax", "where"}
"""Functions and methods whose result shares no memory with their arguments."""


def _aliases(tensor: fx.Node, modules: dict[str, nn.Module]) -> set[fx.Node]:
    """The nodes that may share memory with a tensor. Arguments of the forward may do so with each other."""
    found, new = set(), [tensor]
    while new:
        node = new.pop()
        if node in found:
            continue
        found.add(node)
        new += [user for user in node.users if not _is_fresh(user, modules)]
        new += node.all_input_nodes if not _is_fresh(node, modules) else []
        if node.op in ("placeholder", "get_attr"):
            alike = [each for each in node.graph.nodes if each.op == node.op]
            new += [each for each in alike if node.op == "placeholder" or each.target == node.target]
    return found


def _is_fresh(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether the result of a node shares no memory with its arguments."""
    if node.op == "output":
        return True
    if node.op == "call_module":
        module = modules[str(node.target)]
        fresh = *_CONVOLUTIONS, *_MODULES, nn.Linear, nn.InstanceNorm2d, nn.BatchNorm2d, nn.ReflectionPad2d
        return parametrize.type_before_parametrizations(module) in fresh and not _may_write(node, modules)
    name = str(getattr(node.target, "__name__", node.target))
    return name in FRESH and not _may_write(node, modules)


def _is_torchs(module: nn.Module) -> bool:
    """Whether a call of this module runs code of torch only. `fuse` looks at its children for itself."""
    return type(module).__module__.partition(".")[0] == "torch" and _is_as_torchs(module)


def _is_used_between(norm: fx.Node, add: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether other code uses the norm's input between norm and sum, or may write into it by another name.

    The fused operation reads the input at the place of the sum.
    """
    nodes = list(norm.graph.nodes)
    between = nodes[nodes.index(norm) + 1 : nodes.index(add)]
    return any(
        _may_write_into(source, between, modules) or any(user in between for user in source.users)
        for source in norm.all_input_nodes
    )


def _activation(node: fx.Node, modules: dict[str, nn.Module]) -> Activation | None:
    if node.op == "call_module":
        module = modules[str(node.target)]
        make = _MODULES.get(type(module))
        return make(module) if make and _is_as_torchs(module) else None
    name = _FUNCTIONS.get(node.target)
    if name == "leaky_relu":
        slope = _argument(node, 1, "negative_slope", 0.01)
        return Activation(name, slope) if isinstance(slope, int | float) else None
    if name == "elu" and _argument(node, 1, "alpha", 1.0) != 1:
        return None
    if name == "gelu" and _argument(node, 1, "approximate", "none") != "none":
        return None
    return Activation(name) if name else None


def _is_as_torchs(module: nn.Module) -> bool:
    """Whether a call of this module of torch does nothing but its forward."""
    return not has_hooks(module) and "forward" not in vars(module)


def _reflection_pad(node: fx.Node, modules: dict[str, nn.Module]) -> int:
    """The width of a reflection padding that is the same on four sides; 0 if `node` is something else."""
    padding: Any = ()
    if node.op == "call_module":
        module = modules[str(node.target)]
        if type(module) is nn.ReflectionPad2d and _is_as_torchs(module):
            padding = module.padding
    elif calls(node, F.pad) and _argument(node, 2, "mode", "constant") == "reflect":
        padding = _argument(node, 1, "pad", ())
    alike = len(padding) == 4 and all(isinstance(side, int) and side == padding[0] > 0 for side in padding)
    return padding[0] if alike else 0


def _is_kept(result: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether a convolution keeps this result for its backward, and no user of the result might write into it."""
    reads = torch.cat, torch.add, operator.add, F.conv2d, F.conv_transpose2d
    if any("out" in user.kwargs for user in result.users):
        return False
    return any(_convolves(user, modules) or calls(user, F.conv2d, F.conv_transpose2d) for user in result.users) and all(
        _convolves(user, modules) or calls(user, *reads) for user in result.users
    )


def _convolves(user: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether a node calls a convolution of torch."""
    if user.op != "call_module":
        return False
    module = modules[str(user.target)]
    return parametrize.type_before_parametrizations(module) in _CONVOLUTIONS and _is_as_torchs(module)


def needs_no_layout(result: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether only sums, means and instance norms read a result. They read a contiguous one faster than another."""
    return all(
        calls(user, torch.sum, torch.mean, "sum", "mean", F.instance_norm)
        or (user.op == "call_module" and type(modules[str(user.target)]) is nn.InstanceNorm2d)
        for user in result.users
    )


def calls(node: fx.Node, *targets: Any) -> bool:
    """Whether a node calls one of these functions, or a method with one of these names."""
    return node.op in ("call_function", "call_method") and node.target in targets


def _argument(node: fx.Node, position: int, name: str, default: Any) -> Any:
    """An argument of a call, by position or by name."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def nearest_convolution(site: Site, modules: dict[str, nn.Module]) -> str | None:
    """The path of the convolution in the same forward that is nearest to a site, and whose weight shows its layout.

    The weight of a 1 × 1 convolution shows none.
    """
    nodes = [node for node in site.steps[0].graph.nodes if node.op == "call_module" or node is site.steps[0]]
    place = nodes.index(site.steps[0])
    found = [
        (abs(i - place), str(node.target))
        for i, node in enumerate(nodes)
        if node.op == "call_module"
        and isinstance(conv := modules[str(node.target)], _ConvNd)
        and not isinstance(conv, LazyModuleMixin)
        and max(conv.kernel_size) > 1
    ]
    return min(found)[1] if found else None


def reason_against(site: Site) -> str | None:
    """The reason why this norm is not fused; None if it can be."""
    norm = site.norm
    if norm is None:
        own_statistics = site.steps[0].kwargs.get("use_input_stats") is True
        running = site.steps[0].kwargs.get("running_mean"), site.steps[0].kwargs.get("running_var")
        return None if own_statistics and running == (None, None) else "uses running statistics"
    if norm.track_running_stats or norm.running_mean is not None:
        return "tracks running statistics, which the fused operation does not"
    if has_hooks(norm):
        return "has hooks, which see its result"
    return "has a forward of its own on the object" if "forward" in vars(norm) else None


_SETTINGS = {nn.GELU: "approximate", nn.ELU: "alpha", nn.ReflectionPad2d: "padding"}
"""Settings that decided whether a module can be fused."""


def guard(site: Site, guards: Guards, modules: dict[str, nn.Module]) -> None:
    """Require that the modules of a site, and torch's functions that they call, stay as they are.

    If the output is kept, the convolutions that take it must stay, too. Another module might write into it. And a hook
    might see its type, which is not torch's under autocast.
    """
    kept = list(site.steps[-1].users) if site.save == "auto" or (site.convolved and site.reflection_pad) else []
    for step in (*site.steps, *kept):
        if step.op == "call_module":
            module = modules[str(step.target)]
            guards.require_untouched(str(step.target), type(module))
            if setting := _SETTINGS.get(type(module)):
                guards.require_attribute(str(step.target), setting, getattr(module, setting))
    if site.norm is not None:
        guards.require_attribute(str(site.steps[0].target), "track_running_stats", False)
        guards.require(f"{guards.module(str(site.steps[0].target))}._buffers.get('running_mean')", None)
    for name in ("instance_norm", site.activation.name, "pad" if site.reflection_pad else ""):
        if function := getattr(F, name, None):
            guards.require(f"{guards.name(F)}.{name}", function)
