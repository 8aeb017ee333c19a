"""Launches, arithmetic and bytes of a whole training step: counted on meta tensors, which have no values.

`count` makes the step of a configuration on meta and takes two steps. The first makes the state of the optimisers. The
second is counted: all operations of PyTorch except views and empty tensors, and every Triton launch, which is recorded
instead of made. torch's multi-tensor operations count as the launches that they take. An operation that waits for the
device cannot run on meta tensors, and would end the count.

A step has one of three sets of operations (`Step`):

- *eager*: those of today's GAN code: `plain_networks`, each loss term by term, torch's NAdam;
- *before*: our networks, but plain losses, torch's spectral norm and torch's NAdam;
- *ours*: our networks, losses, spectral norm and NAdam.

An operation belongs to the part whose function made it. Its backward belongs to the same part.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from unittest import mock

import torch
from torch import Tensor
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import flop_registry
from vologan_kernels import dispatch
from vologan_kernels.adversarial_loss import kernels as adversarial_loss_kernels
from vologan_kernels.pixel_loss import kernels as pixel_loss_kernels
from vologan_kernels.spectral_norm.operation import Normalise

from vologan_fast.config import Config
from vologan_fast.networks import Networks, Numerics, blocks, unet
from vologan_fast.profiling.counts import moved_by_optimizers, needed
from vologan_fast.profiling.launches import Launch, recorded
from vologan_fast.profiling.plain_losses import plain_adversarial_losses, plain_pixel_losses
from vologan_fast.profiling.plain_networks import Plain, plain_networks
from vologan_fast.profiling.saved_tensors import SavedTensors
from vologan_fast.training import cycle_step, fast_step, losses, optimizers
from vologan_fast.training.build import build_step
from vologan_fast.training.optimizers import build_optimizer

Step = Literal["eager", "before", "ours"]
LOSSES, SPECTRAL_NORM, OPTIMIZERS = "losses", "spectral norm", "optimisers"
SUMS, CONVOLUTION, NORM, REST = "sums of gradients", "convolution", "norm", "rest of the networks"
PARTS = (LOSSES, SPECTRAL_NORM, OPTIMIZERS, SUMS, CONVOLUTION, NORM, REST)
LOSS_FUNCTIONS = ("adversarial_loss", "reconstruction_loss", "discriminator_loss")
"""Functions of `vologan_fast/training/losses.py`, by the names that the steps import."""
KERNELS = {
    "vologan_kernels.instance_norm.kernels": NORM,
    "vologan_kernels.pixel_loss.kernels": LOSSES,
    "vologan_kernels.adversarial_loss.kernels": LOSSES,
    "vologan_kernels.spectral_norm.kernels": SPECTRAL_NORM,
    "vologan_kernels.nadam.kernels": OPTIMIZERS,
}
"""Module of a kernel → its part."""
_LAUNCHING = {
    f"vologan_kernels::{operation}": getattr(sys.modules[f"vologan_kernels.{module}.operation"], launches)
    for operation, module, launches in (
        ("instance_norm_act", "instance_norm", "_forward"),
        ("instance_norm_act_backward", "instance_norm", "_backward"),
        ("pixel_losses", "pixel_loss", "_forward"),
        ("pixel_losses_backward", "pixel_loss", "_backward"),
        ("adversarial_losses", "adversarial_loss", "_forward"),
        ("adversarial_losses_backward", "adversarial_loss", "_backward"),
        ("spectral_iterate", "spectral_norm", "_iterate_op"),
        ("spectral_normalize", "spectral_norm", "_forward"),
        ("spectral_normalize_backward", "spectral_norm", "_backward"),
    )
}
_NO_LAUNCH = {
    f"aten::{name}"
    for name in [
        "detach",
        "alias",
        "_unsafe_view",
        "lift_fresh",
        "empty",
        "empty_like",
        "empty_strided",
        "new_empty",
        "new_empty_strided",
    ]
}
READS_TWICE = {"aten::native_batch_norm", "aten::native_batch_norm_backward"}
"""Operations with two passes over the tensor: reductions, then a pass that needs their result."""


@dataclass(frozen=True)
class Operation:
    """One operation of PyTorch, or of `vologan_kernels`."""

    part: str
    name: str
    flop: int
    bytes: int
    """Bytes of the tensors that it reads and writes."""
    launches: int


class Accounting(TorchDispatchMode):
    """Counts launches by part and name. An operation of a backward belongs to the part that `owner` gave its node."""

    def __init__(self) -> None:
        super().__init__()
        self.launches: dict[str, Counter[str]] = {part: Counter() for part in PARTS}
        self.operations: list[Operation] = []
        self.part: str | None = None

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function._schema.name
        on_device = _on_device((args, kwargs))
        result = None
        if "fused" not in name:  # fused operations have no meta form, and change nothing here
            # On meta tensors, the fake form of an operation would run. The count needs its launch code.
            result = _LAUNCHING.get(name, function)(*args, **(kwargs or {}))
            if "convolution" in name:  # cuDNN keeps the layout of images; a meta tensor would lose it
                result = tree_map(_channels_last, result)
        on_device = on_device or _on_device(result)
        if on_device and not function.is_view and name not in _NO_LAUNCH:
            if "_foreach_" in name or "_fused_" in name:
                launches = multi_tensor_launches([tensors for tensors in args if isinstance(tensors, (list, tuple))])
            else:
                launches = 0 if name.startswith("vologan_kernels::") else 1
            part = self._part_of(name)
            self.launches[part][name] += launches
            self._count(function, args, kwargs or {}, result, Operation(part, name, 0, 0, launches))
        return result

    def _count(self, function: Any, args: Any, kwargs: Any, result: Any, operation: Operation) -> None:
        read = size_of(needed(operation.name, (args, kwargs) if kwargs else args))
        formula = flop_registry.get(function.overloadpacket)
        self.operations.append(
            dataclasses.replace(
                operation,
                flop=formula(*args, **kwargs, out_val=result) if formula else 0,
                bytes=read * (2 if operation.name in READS_TWICE else 1) + size_of(tree_leaves(result)),
            )
        )
        if "convolution" in operation.name:
            for image in args[:2] if "backward" in operation.name else args[:1]:
                if not image.is_contiguous(memory_format=torch.channels_last):  # the convolution copies it first
                    self.operations.append(Operation(NORM, "layout copy", 0, 2 * size_of([image]), 1))

    def _part_of(self, name: str) -> str:
        if self.part is not None:
            return self.part
        node: Any = torch._C._current_autograd_node()
        if node is not None and "part" in node.metadata:
            return str(node.metadata["part"])
        if name == "aten::ones_like":  # where a backward starts
            return LOSSES
        if "convolution" in name:
            return CONVOLUTION
        if name.startswith("vologan_kernels::instance_norm"):
            return NORM
        if torch._C._current_graph_task_id() != -1 and name in ("aten::add", "aten::add_"):  # of a backward
            return SUMS
        return REST

    @contextlib.contextmanager
    def of(self, part: str) -> Iterator[None]:
        before, self.part = self.part, part
        try:
            yield
        finally:
            self.part = before

    def owner(self, part: str, function: Any) -> Any:
        """`function`, with all its operations and their backward counted for `part`."""

        def owned(*args: Any, **kwargs: Any) -> Any:
            given = {tensor.grad_fn for tensor in tree_leaves((args, kwargs)) if _is_tensor(tensor)}
            with self.of(part):
                result = function(*args, **kwargs)
            found = vars(result).values() if dataclasses.is_dataclass(result) else tree_leaves(result)
            waiting = [tensor.grad_fn for tensor in found if _is_tensor(tensor)]
            while waiting:
                node = waiting.pop()
                if node is not None and node not in given and "AccumulateGrad" not in node.name():
                    given.add(node)
                    node.metadata["part"] = part
                    waiting += [following for following, _ in node.next_functions]
            return result

        return owned


def _channels_last(value: Any) -> Any:
    return value.contiguous(memory_format=torch.channels_last) if _is_tensor(value) and value.dim() == 4 else value


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


def _on_device(values: Any) -> bool:
    return any(_is_tensor(value) and value.device.type != "cpu" for value in tree_leaves(values))


def size_of(values: Sequence[Any]) -> int:
    """Bytes of the tensors among `values`. A tensor that repeats its elements counts those once."""
    sizes = ((v.numel() * v.element_size(), v.untyped_storage().nbytes()) for v in values if _is_tensor(v))
    return sum(min(size) for size in sizes)


def multi_tensor_launches(lists: Sequence[Sequence[Tensor]]) -> int:
    """Launches of torch's multi_tensor_apply: 65,536 elements a block; 320 blocks, some dozens of tensors a launch."""
    most_tensors = {1: 110, 2: 64, 3: 48, 4: 36}.get(len(lists), 30)
    sizes = [tensor.numel() for tensor in lists[0] if tensor.device.type != "cpu" and tensor.numel()]
    launches = tensors = blocks = 0
    for size in sizes:
        tensors += 1
        chunks = -(-size // 65536)
        for chunk in range(chunks):
            blocks += 1
            if blocks == 320 or (tensors == most_tensors and chunk == chunks - 1):
                launches, blocks, tensors = launches + 1, 0, int(chunk < chunks - 1)
    return launches + (blocks > 0)


# ---- autocast on meta -----------------------------------------------------------------------------------------------


class _Autocast(TorchFunctionMode):
    """What torch.autocast does for convolutions and products. It does not know meta tensors."""

    products = ("conv2d", "conv_transpose2d", "linear", "matmul", "bmm", "baddbmm", "scaled_dot_product_attention")

    def __init__(self, device: str, dtype: torch.dtype = torch.float32, enabled: bool = True) -> None:
        super().__init__()
        self.dtype = dtype if enabled else None

    def __enter__(self) -> Any:
        _entered.append(self)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        _entered.pop()
        super().__exit__(*error)

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.dtype is not None and getattr(function, "__name__", "") in self.products:
            args = tuple(a.to(self.dtype) if _is_tensor(a) and a.is_floating_point() else a for a in args)
        return function(*args, **(kwargs or {}))


_entered: list[_Autocast] = []


def _checkpoint(function: Any, *arguments: Any, **options: Any) -> Any:
    """torch's checkpoint enters the forward's autocast again before it runs `function` again. So does this one."""
    dtype = _entered[-1].dtype if _entered else None

    def contexts() -> tuple[Any, Any]:
        return contextlib.nullcontext(), _Autocast("meta", dtype or torch.float32, enabled=dtype is not None)

    return checkpoint(function, *arguments, context_fn=contexts, **options)


# ---- counting -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Counted:
    """A step, or the mean of several."""

    accounting: Accounting
    launches: list[Launch]
    """All Triton launches."""
    kept: int
    """The most bytes that autograd keeps for the backward. Parameters do not count."""
    optimized: int
    """Bytes that the optimisers, and the averages, must read and write."""
    constant: int
    """Bytes of parameters, gradients, averages and the state of the optimisers."""
    steps: int
    """Steps that were counted: all of a period of `loss.identity_every`."""


def count(step: Step, config: Config, precision: torch.dtype = torch.float32) -> Counted:
    """Count a step of a configuration, in the `precision` of its networks."""
    eager = step == "eager"
    with contextlib.ExitStack() as patches:

        def patch(where: Any, name: str, value: Any) -> None:
            patches.enter_context(mock.patch.object(where, name, value))

        patch(dispatch, "_is_gpu", lambda tensor: True)
        patch(torch, "autocast", _Autocast)
        patch(unet, "checkpoint", _checkpoint)
        for module in (adversarial_loss_kernels, pixel_loss_kernels):  # on a GPU the counter is kept from step to step
            patch(module, "arrivals", lambda device: torch.empty((), dtype=torch.int32, device=device))
        patch(optimizers, "_form", lambda parameters, precision: {"fused": True})
        patch(sys.modules["torch.optim.optimizer"], "_get_fused_kernels_supported_devices", lambda: ["meta"])
        if step != "ours":
            patch(losses, "pixel_losses", plain_pixel_losses)
            patch(losses, "adversarial_losses", plain_adversarial_losses)
        if step == "before":
            patch(blocks, "spectral_norm", torch.nn.utils.parametrizations.spectral_norm)
        with torch.device("meta"):
            networks = plain_networks(config) if eager else Networks(config)
            synthetic, real = (
                torch.empty(config.train.batch, channels.number, *config.data.shape).contiguous(
                    memory_format=torch.channels_last
                )
                for channels in config.data.channel_sets.values()
            )
        networks.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        of = networks.optimized
        if step != "ours" and config.generator_optimizer.kind == "nadam":
            generators: Any = torch.optim.NAdam(of["generator"].parameters(), foreach=True)
        else:
            generators = build_optimizer(of["generator"].parameters(), config.generator_optimizer)
        discriminators = build_optimizer(of["discriminator"].parameters(), config.discriminator_optimizer)
        numerics = Numerics(precision, torch.channels_last)  # the layout of a GPU
        train = build_step(config, networks, generators, discriminators, numerics)
        for numbers in (range(1), range(config.loss.identity_every)):  # the first time makes the optimisers' state
            accounting, kept = Accounting(), SavedTensors(networks)
            with contextlib.ExitStack() as parts:
                for where, name, part in (
                    *((module, name, LOSSES) for module in (cycle_step, fast_step) for name in LOSS_FUNCTIONS),
                    (Normalise, "apply", SPECTRAL_NORM),
                    (parametrize.ParametrizationList, "forward", SPECTRAL_NORM),
                    (generators, "step", OPTIMIZERS),
                    (discriminators, "step", OPTIMIZERS),
                    (Plain, "forward", NORM),
                ):
                    owned = accounting.owner(part, getattr(where, name))
                    parts.enter_context(mock.patch.object(where, name, owned))
                launches = parts.enter_context(recorded())
                parts.enter_context(kept.counted())
                parts.enter_context(accounting)
                for number in numbers:
                    train(synthetic, real, number)
    for launch in launches:
        accounting.launches[KERNELS[launch.kernel.fn.__module__]][launch.kernel.__name__] += 1
    learning = size_of(list(networks.learning.parameters()))
    averages = size_of(list(networks.translators.parameters())) if networks.decay else 0
    state = sum(size_of(tree_leaves(optimizer.state_dict())) for optimizer in (generators, discriminators))
    constant = 2 * learning + averages + state
    moved = sum(operation.bytes for operation in moved_by_optimizers((generators, discriminators), networks))
    return Counted(accounting, launches, kept.peak, moved, constant, config.loss.identity_every)
