"""Put the fused instance norm into a model that was written without it.

`fuse` finds each `nn.InstanceNorm2d` and `F.instance_norm` with what follows it: the sum with a residual, an
activation, and a reflection padding, each optional and in this order. The forward of the module that calls them is
rewritten to one call of `instance_norm_act` (`rewriting.py`, which also says when the original forward runs instead).
Every norm itself becomes an `InstanceNormAct2d` without activation: the same function, without the layout copies of
`nn.InstanceNorm2d`, for whatever still calls it alone. No child is added, removed or renamed, and no parameter is
touched: the state dict, the parameters that an optimizer holds, and every other method of the model stay what they are.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

from vologan_kernels.activations import invertible
from vologan_kernels.instance_norm import InstanceNormAct2d, instance_norm_act
from vologan_kernels.rewriting import Untraceable, has_hooks, rewrite, rewrite_of, trace


@dataclass(frozen=True)
class Finding:
    """One norm: its qualified name, and what became of it or why it was left."""

    name: str
    detail: str

    def __str__(self) -> str:
        return f"  {self.name or '(the model itself)'}: {self.detail}"


@dataclass(frozen=True)
class FusionReport:
    """What `fuse` did. `print` it to read it.

    `fused`: norms that are one operation with what follows them. `alone`: norms that became an `InstanceNormAct2d`
    without anything that follows, and why. `left`: norms and modules that were not changed, and why.
    """

    fused: tuple[Finding, ...]
    alone: tuple[Finding, ...]
    left: tuple[Finding, ...]

    def __str__(self) -> str:
        parts = [
            ("Fused", self.fused),
            ("Replaced, but not fused with what follows", self.alone),
            ("Left as they were", self.left),
        ]
        lines = [line for title, found in parts if found for line in (f"{title} ({len(found)}):", *map(str, found))]
        return "\n".join(lines or ["No instance norm was found."])


def fuse(model: nn.Module) -> tuple[nn.Module, FusionReport]:
    """Fuse the instance norms of `model` with what follows them; returns the model and a report.

    The model is changed in place and is the object that is returned. Fuse before `torch.compile`; before or after
    moving, loading, wrapping in `DataParallel`, or building an optimizer. Fusing a second time changes nothing.

    Raises ValueError, before anything is changed, if a part of the model is compiled or scripted.
    """
    names = {module: name for name, module in model.named_modules()}
    for module, name in names.items():
        _refuse_compiled(module, name)
    norms, left = _select(names)
    for norm in norms:
        _replace(norm)
    fused: list[Finding] = []
    reasons: dict[str, str] = {}
    for owner, name in names.items():
        if rewrite_of(owner):
            left.append(Finding(name, "has a fused forward already"))
            continue
        if not _may_call_a_norm(owner, norms):
            continue
        try:
            found, unfused = _fuse_in(owner, name, norms)
        except Untraceable as error:
            found, unfused = [], _reasons_of_untraceable(owner, name, norms, str(error))
        fused += found
        reasons = unfused | reasons
    fused_names = {finding.name for finding in fused}
    alone = [
        Finding(name, reasons.get(name, "no forward that can be read calls it"))
        for norm, name in norms.items()
        if name not in fused_names
    ]
    left += [Finding(name, why) for name, why in reasons.items() if name not in fused_names.union(norms.values())]
    return model, FusionReport(tuple(dict.fromkeys(fused)), tuple(alone), tuple(left))


# ---- norms ----------------------------------------------------------------------------------------------------------


def _refuse_compiled(module: nn.Module, name: str) -> None:
    where = f"fuse: {name or 'the model'} is"
    if isinstance(module, torch.jit.ScriptModule):
        raise ValueError(
            f"{where} scripted, and its Python code is gone: fuse before torch.jit.script or torch.jit.trace"
        )
    if module._compiled_call_impl is not None or isinstance(getattr(module, "_orig_mod", None), nn.Module):
        raise ValueError(f"{where} compiled: fuse first, then torch.compile")


def _select(names: dict[nn.Module, str]) -> tuple[dict[nn.Module, str], list[Finding]]:
    """The norms to replace, with their names, and those to leave, with the reason."""
    norms: dict[nn.Module, str] = {}
    left: list[Finding] = []
    for module, name in names.items():
        if type(module) is nn.InstanceNorm2d:
            norms[module] = name
        elif isinstance(module, InstanceNormAct2d):
            left.append(Finding(name, "is an InstanceNormAct2d already"))
        elif isinstance(module, nn.LazyInstanceNorm2d):
            left.append(Finding(name, "is lazy and does not know its channels yet: run the model once before"))
        elif isinstance(module, nn.InstanceNorm2d):
            parametrized = parametrize.is_parametrized(module)
            why = "has a parametrization" if parametrized else f"is a subclass, {type(module).__qualname__}"
            left.append(Finding(name, why))
    return norms, left


def _replace(norm: nn.Module) -> None:
    """Make an `nn.InstanceNorm2d` an `InstanceNormAct2d` that does the same.

    By its class, so that it stays the same object, with its parameters, buffers and hooks, wherever it is referred to.
    It keeps its input for the backward, as before: code that writes into the output of a norm goes on working.
    """
    assert isinstance(norm, nn.InstanceNorm2d)
    defaults = vars(InstanceNormAct2d(norm.num_features, device="meta", save="input"))
    norm.__dict__.update({name: value for name, value in defaults.items() if name not in vars(norm)})
    norm.__class__ = InstanceNormAct2d


# ---- the forwards that call them ------------------------------------------------------------------------------------


def _may_call_a_norm(owner: nn.Module, norms: dict[nn.Module, str]) -> bool:
    """Whether `owner` is a chain of children or has Python of its own, and norms are within its reach."""
    if type(owner).forward is nn.Sequential.forward:
        return any(child in norms for child in owner.children())
    if _is_torchs(type(owner)):
        return False
    return any(True for _ in _reach(owner, norms)) or _names_instance_norm(type(owner))


def _reach(module: nn.Module, norms: dict[nn.Module, str]) -> Iterator[nn.Module]:
    """The norms among the children of `module`, and among those of the containers there."""
    for child in module.children():
        if child in norms:
            yield child
        elif isinstance(child, nn.Sequential | nn.ModuleList | nn.ModuleDict):
            yield from _reach(child, norms)


def _names_instance_norm(kind: type) -> bool:
    functions = [member for base in kind.__mro__ if not _is_torchs(base) for member in vars(base).values()]
    return any("instance_norm" in f.__code__.co_names for f in functions if isinstance(f, FunctionType))


def _is_torchs(kind: type) -> bool:
    return kind.__module__.partition(".")[0] == "torch"


def _reasons_of_untraceable(owner: nn.Module, name: str, norms: dict[nn.Module, str], why: str) -> dict[str, str]:
    within = [norms[norm] for norm in _reach(owner, norms)]
    if not within:
        return {name: f"{type(owner).__name__} {why}"}
    return dict.fromkeys(within, f"its owner, a {type(owner).__name__}, {why}")


def _fuse_in(owner: nn.Module, name: str, norms: dict[nn.Module, str]) -> tuple[list[Finding], dict[str, str]]:
    """Rewrite the forward of `owner`; what was fused, and by name why other norms that it calls were not."""
    traced = trace(owner)
    modules = dict(owner.named_modules(remove_duplicate=False))
    fused: list[Finding] = []
    reasons: dict[str, str] = {}
    absorbed: list[str] = []
    summary: list[str] = []
    for node in list(traced.graph.nodes):
        norm = modules[node.target] if node.op == "call_module" else None
        if norm in norms:
            norm_name = norms[norm]
        elif _calls(node, F.instance_norm):
            norm_name = f"{name}:{node.name}".lstrip(":")
        else:
            continue
        site = _match(node, modules)
        if why_not := _why_not(site, modules):
            reasons[norm_name] = why_not
            continue
        fused.append(Finding(norm_name, f"{site.operation()}; the backward keeps its {site.keeps()}"))
        summary.append(f"fused: {node.target if norm else node.name} = {site.operation()}")
        absorbed += [str(step.target) for step in site.steps if step.op == "call_module"]
        _emit(site, traced.graph)
    if fused:
        rewrite(owner, traced, list(dict.fromkeys(absorbed)), "\n".join(summary))
    return fused, reasons


# ---- what follows a norm --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Activation:
    name: str = "identity"
    slope: float = 0.01
    attribute: str = ""
    """Which attribute of the activation's module holds the slope."""

    def __str__(self) -> str:
        return f"leaky_relu({self.slope:g})" if self.name == "leaky_relu" else self.name


@dataclass(frozen=True)
class _Site:
    """A norm and the steps behind it that one operation can do. `steps` are their nodes, the norm's first."""

    steps: tuple[fx.Node, ...]
    norm: nn.InstanceNorm2d | None
    """None: the norm is a call of F.instance_norm."""
    residual: fx.Node | None
    activation: _Activation
    reflection_pad: int
    save: str

    def operation(self) -> str:
        parts = ["instance norm"]
        parts += ["residual"] if self.residual else []
        parts += [str(self.activation)] if self.activation.name != "identity" else []
        parts += [f"reflection_pad({self.reflection_pad})"] if self.reflection_pad else []
        return " + ".join(parts)

    def keeps(self) -> str:
        weight = self.steps[0].kwargs.get("weight") if self.norm is None else self.norm.weight
        can = weight is None and invertible(self.activation.name, self.activation.slope)
        return "output" if can and self.save == "auto" else "input"


_ACTIVATION_MODULES: dict[type[nn.Module], Callable[[Any], _Activation | None]] = {
    nn.ReLU: lambda module: _Activation("relu"),
    nn.LeakyReLU: lambda module: _Activation("leaky_relu", module.negative_slope, "negative_slope"),
    nn.PReLU: lambda module: _Activation("prelu", attribute="weight"),
    nn.SiLU: lambda module: _Activation("silu"),
    nn.GELU: lambda module: _Activation("gelu") if module.approximate == "none" else None,
    nn.ELU: lambda module: _Activation("elu") if module.alpha == 1 else None,
    nn.Tanh: lambda module: _Activation("tanh"),
}

_ACTIVATION_FUNCTIONS: dict[Any, str] = {
    **dict.fromkeys((F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_"), "relu"),
    **dict.fromkeys((F.leaky_relu, F.leaky_relu_), "leaky_relu"),
    F.silu: "silu",
    F.gelu: "gelu",
    **dict.fromkeys((F.elu, F.elu_), "elu"),
    **dict.fromkeys((torch.tanh, torch.tanh_, "tanh", "tanh_"), "tanh"),
}
"""Functions, and methods of a tensor by their names."""


def _match(norm: fx.Node, modules: dict[str, nn.Module]) -> _Site:
    steps, residual, activation, reflection_pad = [norm], None, _Activation(), 0
    if (user := _only_user(norm)) and (residual := _residual(user, norm)):
        steps.append(user)
    if (user := _only_user(steps[-1])) and (found := _activation(user, modules)):
        steps.append(user)
        activation = found
    if (user := _only_user(steps[-1])) and (reflection_pad := _reflection_pad(user, modules)):
        steps.append(user)
    owner = modules[str(norm.target)] if norm.op == "call_module" else None
    assert owner is None or isinstance(owner, nn.InstanceNorm2d)
    save = "auto" if residual is None and _is_kept(steps[-1], modules) else "input"
    return _Site(tuple(steps), owner, residual, activation, reflection_pad, save)


def _only_user(node: fx.Node) -> fx.Node | None:
    users = list(node.users)
    return users[0] if len(users) == 1 else None


def _residual(add: fx.Node, norm: fx.Node) -> fx.Node | None:
    """What `add` adds to the norm; None if it is no plain sum, or one that is written into the other operand."""
    operands = add.args
    if len(operands) != 2 or add.kwargs or not _calls(add, operator.add, operator.iadd, torch.add, "add", "add_"):
        return None
    writes = _calls(add, operator.iadd, "add_")
    if operands[0] is not norm and writes:
        return None
    other = operands[1] if operands[0] is norm else operands[0]
    if not isinstance(other, fx.Node) or other is norm or _is_used_between(norm, add):
        return None
    return other


def _is_used_between(norm: fx.Node, add: fx.Node) -> bool:
    """Whether the norm's input meets other code before the sum, where the fused operation reads it: it may write."""
    nodes = list(norm.graph.nodes)
    between = nodes[nodes.index(norm) + 1 : nodes.index(add)]
    return any(user in between for source in norm.all_input_nodes for user in source.users)


def _activation(node: fx.Node, modules: dict[str, nn.Module]) -> _Activation | None:
    if node.op == "call_module":
        module = modules[str(node.target)]
        make = _ACTIVATION_MODULES.get(type(module))
        return make(module) if make and not has_hooks(module) else None
    name = _ACTIVATION_FUNCTIONS.get(node.target)
    if name == "leaky_relu":
        slope = _argument(node, 1, "negative_slope", 0.01)
        return _Activation(name, slope) if isinstance(slope, int | float) else None
    if name == "elu" and _argument(node, 1, "alpha", 1.0) != 1:
        return None
    if name == "gelu" and _argument(node, 1, "approximate", "none") != "none":
        return None
    return _Activation(name) if name else None


def _reflection_pad(node: fx.Node, modules: dict[str, nn.Module]) -> int:
    """The width if `node` is a reflection padding, alike on four sides; else 0."""
    padding: Any = ()
    if node.op == "call_module":
        module = modules[str(node.target)]
        if type(module) is nn.ReflectionPad2d and not has_hooks(module):
            padding = module.padding
    elif _calls(node, F.pad) and _argument(node, 2, "mode", "constant") == "reflect":
        padding = _argument(node, 1, "pad", ())
    alike = len(padding) == 4 and all(isinstance(side, int) and side == padding[0] > 0 for side in padding)
    return padding[0] if alike else 0


def _is_kept(result: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether a convolution keeps this result for its backward, and nothing that uses it might write into it."""

    def convolves(user: fx.Node) -> bool:
        return user.op == "call_module" and isinstance(modules[str(user.target)], _ConvNd)

    reads = torch.cat, torch.add, operator.add, F.conv2d, F.conv_transpose2d
    return any(convolves(user) or _calls(user, F.conv2d, F.conv_transpose2d) for user in result.users) and all(
        convolves(user) or _calls(user, *reads) for user in result.users
    )


def _calls(node: fx.Node, *targets: Any) -> bool:
    return node.op in ("call_function", "call_method") and node.target in targets


def _argument(node: fx.Node, position: int, name: str, default: Any) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def _why_not(site: _Site, modules: dict[str, nn.Module]) -> str | None:
    """Why this norm stays an operation of its own; None if it does not."""
    norm = site.norm
    if norm is None:
        own_statistics = site.steps[0].kwargs.get("use_input_stats") is True
        running = site.steps[0].kwargs.get("running_mean"), site.steps[0].kwargs.get("running_var")
        return None if own_statistics and running == (None, None) else "uses running statistics"
    if norm.track_running_stats:
        return "tracks running statistics, which the fused operation does not"
    if has_hooks(norm):
        return "has hooks, which see its result"
    if len(site.steps) > 1:
        return None
    users = list(site.steps[0].users)
    if len(users) != 1:
        return f"its result is used {len(users)} times"
    return "its result is returned" if users[0].op == "output" else f"is followed by {_name(users[0], modules)}"


def _name(node: fx.Node, modules: dict[str, nn.Module]) -> str:
    if node.op != "call_module":
        return getattr(node.target, "__name__", str(node.target))
    module = modules[str(node.target)]
    words = repr(module) if not list(module.children()) else type(module).__name__
    return f"{words}, which has hooks" if has_hooks(module) else words


# ---- the fused call -------------------------------------------------------------------------------------------------


def _emit(site: _Site, graph: fx.Graph) -> None:
    """Put one call in the place of the site's steps. It reads parameters and settings when it runs."""
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
    """`instance_norm_act` with what the rewritten code may rely on: called by rewritten forwards.

    A residual of another dtype or shape takes part as in a sum of tensors: it is promoted and broadcast to x.
    `unbatched`: x may be (C, H, W).
    """
    if residual is not None:
        dtype = torch.promote_types(x.dtype, residual.dtype) if residual.dim() else x.dtype
        x, residual = x.to(dtype), residual.to(dtype).expand(x.shape)
    if unbatched and x.dim() == 3:
        one = None if residual is None else residual[None]
        return instance_norm_act(x[None], weight, bias, residual=one, **options)[0]
    return instance_norm_act(x, weight, bias, residual=residual, **options)
