"""`fuse`: rewrite the forwards that call instance norms; and `unfuse`."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from types import FunctionType

import torch
from torch import fx, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from vologan_kernels.fuse import convolutions
from vologan_kernels.fuse.fused_call import emit
from vologan_kernels.fuse.guards import plain_class
from vologan_kernels.fuse.reads import Untraceable
from vologan_kernels.fuse.report import Finding, FusionReport
from vologan_kernels.fuse.rewriting import check_rewritable, holds, is_rewritten, restore, rewrite
from vologan_kernels.fuse.sites import calls, find_site, guard, nearest_convolution, reason_against
from vologan_kernels.fuse.strides import reader_of_strides
from vologan_kernels.fuse.tracing import Trace, one_at_a_time, trace
from vologan_kernels.instance_norm import InstanceNormAct2d


def fuse(model: nn.Module) -> tuple[nn.Module, FusionReport]:
    """Fuse the instance norms of `model` with what follows them. Returns the model and a report.

    The model is changed in place, and the same object is returned. `unfuse` takes the change back. Fuse before
    `torch.compile`. Moving, loading, wrapping in `DataParallel` and building an optimiser may come before or after.
    Fusing a second time changes nothing.

    Raises ValueError, before anything is changed, if a part of the model is compiled or scripted.
    """
    names = {module: name for name, module in model.named_modules()}
    for module, name in names.items():
        _refuse_compiled(module, name)
    norms, left = _select(names)
    contiguous_for = reader_of_strides(model)
    by_owner: dict[nn.Module, list[Finding]] = {}
    reasons: dict[str, str] = {}
    for owner, name in names.items():
        if not _may_call_a_norm(owner, norms):
            continue
        if is_rewritten(owner) and "_class_before_fuse" not in vars(type(owner)):  # another library made a subclass
            reasons |= dict.fromkeys([name, *(norms[norm] for norm in _reach(owner, norms))], "is fused already")
            continue
        before = type(owner) if is_rewritten(owner) and holds(owner) else None
        try:
            if is_rewritten(owner):  # perhaps for layers that were exchanged since
                restore(owner)
            found, unfused = _fuse_in(owner, name, norms, contiguous_for)
        except Untraceable as error:
            found, unfused = [], _reasons_of_untraceable(owner, name, norms, str(error))
        if before and found:
            owner.__class__ = before
            reasons |= {finding.name: "is fused already" for finding in found}
        else:
            by_owner[owner] = found
        reasons = unfused | reasons
    for owner, found in by_owner.items():
        if found and not holds(owner):
            restore(owner)
            why = f"its owner, a {type(owner).__name__}, calls the forward of a module that is fused itself"
            by_owner[owner] = []
            reasons = {finding.name: why for finding in found} | reasons
    fused = [finding for found in by_owner.values() for finding in found]
    fused_names = {finding.name for finding in fused}
    for name in dict.fromkeys((*norms.values(), *reasons)):
        if name not in fused_names:
            left.append(Finding(name, reasons.get(name, "no forward that can be read calls it")))
    return model, FusionReport(tuple(dict.fromkeys(fused)), tuple(left))


def unfuse(model: nn.Module) -> nn.Module:
    """Take back all that `fuse` did to `model`. Returns the model.

    The model is changed in place. Parameters, buffers, hooks and modules stay the same objects, as with `fuse`.
    """
    for module in model.modules():
        if is_rewritten(module):
            restore(module)
    return model


# ---- norms ----------------------------------------------------------------------------------------------------------


def _refuse_compiled(module: nn.Module, name: str) -> None:
    """Raise ValueError for a module that is compiled or scripted."""
    where = f"fuse: {name or 'the model'} is"
    if isinstance(module, torch.jit.ScriptModule):
        raise ValueError(
            f"{where} scripted, and its Python code is gone: fuse before torch.jit.script or torch.jit.trace"
        )
    if module._compiled_call_impl is not None or isinstance(getattr(module, "_orig_mod", None), nn.Module):
        raise ValueError(f"{where} compiled: fuse first, then torch.compile")


def _select(names: dict[nn.Module, str]) -> tuple[dict[nn.Module, str], list[Finding]]:
    """The norms that can be fused, with their names; and the other norms, with the reason."""
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


# ---- the forwards that call them ------------------------------------------------------------------------------------


def _may_call_a_norm(owner: nn.Module, norms: dict[nn.Module, str]) -> bool:
    """Whether the forward of `owner` may call a norm.

    It may if `owner` is an `nn.Sequential` with a norm as a child, or if it has its own Python code and can reach
    norms.
    """
    kind = plain_class(owner)
    if kind.forward is nn.Sequential.forward:
        return any(child in norms for child in owner.children())
    if _is_torchs(kind):
        return False
    return any(True for _ in _reach(owner, norms)) or _names_instance_norm(kind)


def _reach(module: nn.Module, norms: dict[nn.Module, str]) -> Iterator[nn.Module]:
    """The norms among the children of `module`, and among the children of its containers."""
    for child in module.children():
        if child in norms:
            yield child
        elif isinstance(child, nn.Sequential | nn.ModuleList | nn.ModuleDict):
            yield from _reach(child, norms)


def _names_instance_norm(kind: type) -> bool:
    """Whether a method of the class refers to a function `instance_norm`."""
    functions = [member for base in kind.__mro__ if not _is_torchs(base) for member in vars(base).values()]
    return any("instance_norm" in f.__code__.co_names for f in functions if isinstance(f, FunctionType))


def _is_torchs(kind: type) -> bool:
    """Whether a class is defined in torch."""
    return kind.__module__.partition(".")[0] == "torch"


def _reasons_of_untraceable(owner: nn.Module, name: str, norms: dict[nn.Module, str], why: str) -> dict[str, str]:
    within = [norms[norm] for norm in _reach(owner, norms)]
    if not within:
        return {name: f"{type(owner).__name__} {why}"}
    return dict.fromkeys(within, f"its owner, a {type(owner).__name__}, {why}")


def _fuse_in(
    owner: nn.Module, name: str, norms: dict[nn.Module, str], contiguous_for: str | None
) -> tuple[list[Finding], dict[str, str]]:
    """Rewrite the forward of `owner`. Returns the fused norms, and the reasons by name for the others that it calls.

    `contiguous_for` names code that needs contiguous results.
    """
    check_rewritable(owner)
    traced = trace(owner)
    modules = dict(owner.named_modules(remove_duplicate=False))
    fused: list[Finding] = []
    reasons: dict[str, str] = {}
    summary: list[str] = []
    for node in list(traced.graph.nodes):
        norm = modules[node.target] if node.op == "call_module" else None
        if norm in norms:
            norm_name = norms[norm]
        elif calls(node, F.instance_norm):
            norm_name = f"{name}:{node.name}".lstrip(":")
        else:
            continue
        site = find_site(node, modules)
        if why_not := reason_against(site):
            reasons[norm_name] = why_not
            continue
        detail = f"{site.operation()}; the backward keeps its {site.keeps()}"
        if contiguous_for:
            detail += f"; contiguous, because {contiguous_for} depends on strides"
        fused.append(Finding(norm_name, detail))
        summary.append(f"fused: {node.target if norm else node.name} = {site.operation()}")
        with one_at_a_time:  # another thread's trace exchanges nn.Module.__call__, which the guards require
            guard(site, traced.guards, modules)
        emit(site, traced.graph, modules, None if contiguous_for else nearest_convolution(site, modules))
    if fused:
        has_convolutions = not contiguous_for and convolutions.emit(traced.graph, modules)
        _find_modules_once(traced, modules)
        rewrite(owner, traced, "\n".join(summary), convolutions.contiguous_outside if has_convolutions else None)
    return fused, reasons


def _find_modules_once(traced: Trace, modules: dict[str, nn.Module]) -> None:
    """Let the graph take each module that it passes on from the dictionary of its owner, once.

    As attributes, `nn.Module.__getattr__` would find them, which is Python.
    """
    graph, found = traced.graph, dict[str, fx.Node]()
    for node in [node for node in graph.nodes if node.op == "get_attr" and node.target in modules]:
        path = str(node.target)
        if path not in found:
            traced.guards.module(path)  # it is there, and no attribute hides it
            owner, _, name = path.rpartition(".")
            with graph.inserting_before(node):
                children = graph.create_node("get_attr", f"{owner}._modules".lstrip("."))
                found[path] = graph.call_function(operator.getitem, (children, name))
        node.replace_all_uses_with(found[path])
        graph.erase_node(node)
