"""Launches of a training step of `vologan-512` outside convolution and norm: counted, not timed.

    python bench/static_cost/count_launches.py

The step of `vologan_fast/training/cycle_step.py` runs on meta tensors. All operations of PyTorch are counted,
except views and empty tensors. Every Triton launch is recorded instead of made. An operation that waits for the device
cannot run on meta tensors, and would end the count. Such operations read a number, copy to the host, or find nonzero
elements.

- *before*: plain PyTorch for everything but the norm: each loss term by term, torch's spectral norm layer by layer in
  every forward, torch's NAdam with `foreach`;
- *after*: the same step (`PlainStep`) with our losses, spectral norm and NAdam;
- *fast*: `FastStep`. Its phases need more of these launches in exchange for memory, and far fewer of all others.

The step is in float32. In bfloat16, *before* would also cast each normalised weight in every forward. torch's
multi-tensor operations count as the launches that they take.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from vologan_kernels import dispatch
from vologan_kernels.adversarial_loss import ROLES
from vologan_kernels.adversarial_loss import kernels as adversarial_loss_kernels
from vologan_kernels.adversarial_loss import reference as adversarial_loss
from vologan_kernels.pixel_loss import kernels as pixel_loss_kernels
from vologan_kernels.pixel_loss import reference as pixel_loss
from vologan_kernels.spectral_norm.operation import Normalise

from vologan_fast.config import PRESETS, Config
from vologan_fast.networks import Networks, blocks
from vologan_fast.profiling.launches import recorded
from vologan_fast.training import cycle_step, fast_step, losses, optimizers
from vologan_fast.training.build import build_step
from vologan_fast.training.optimizers import build_optimizer

PARTS = ("losses", "spectral norm", "optimisers", "sums of gradients", "convolution", "norm", "rest of the networks")
OURS = PARTS[:3]
"""The parts that this table is about."""
LOSSES = ("adversarial_loss", "reconstruction_loss", "discriminator_loss")
"""Functions of `vologan_fast/training/losses.py`, by the names that the steps import."""

_KERNELS = {
    "vologan_kernels.instance_norm.kernels": "norm",
    "vologan_kernels.pixel_loss.kernels": "losses",
    "vologan_kernels.adversarial_loss.kernels": "losses",
    "vologan_kernels.spectral_norm.kernels": "spectral norm",
    "vologan_kernels.nadam.kernels": "optimisers",
}
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


class Accounting(TorchDispatchMode):
    """Counts launches by part and name. An operation of a backward belongs to the part that `owner` gave its node."""

    def __init__(self) -> None:
        super().__init__()
        self.launches: dict[str, Counter[str]] = {part: Counter() for part in PARTS}
        self.part: str | None = None

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function._schema.name
        on_device = _on_device((args, kwargs))
        result = None
        if "fused" not in name:  # fused operations have no meta form, and change nothing here
            # On meta tensors, the fake form of an operation would run. The count needs its launch code.
            result = _LAUNCHING.get(name, function)(*args, **(kwargs or {}))
        on_device = on_device or _on_device(result)
        if on_device and not function.is_view and name not in _NO_LAUNCH:
            if "_foreach_" in name or "_fused_" in name:
                launches = multi_tensor_launches([tensors for tensors in args if isinstance(tensors, (list, tuple))])
            else:
                launches = 0 if name.startswith("vologan_kernels::") else 1
            self.launches[self._part_of(name)][name] += launches
        return result

    def _part_of(self, name: str) -> str:
        node = torch._C._current_autograd_node()
        if self.part is not None:
            return self.part
        if node is not None and "part" in node.metadata:
            return node.metadata["part"]
        if name == "aten::ones_like":  # where a backward starts
            return "losses"
        if "convolution" in name:
            return "convolution"
        if torch._C._current_graph_task_id() != -1 and name in ("aten::add", "aten::add_"):  # of a backward
            return "sums of gradients"
        return "rest of the networks"

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


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


def _on_device(values: Any) -> bool:
    return any(_is_tensor(value) and value.device.type != "cpu" for value in tree_leaves(values))


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


# ---- the step before ------------------------------------------------------------------------------------------------


def plain_pixel_losses(pairs: Any, weights: Any, channel_weight: Any, statistics: str = "image") -> Any:
    table = [weight * of_channel for of_pair in weights for weight in of_pair for of_channel in channel_weight]
    loss, metrics, _ = pixel_loss.forward(*zip(*pairs, strict=True), [], table, statistics == "batch")
    return loss, metrics.detach()


def plain_adversarial_losses(logits: Any, roles: Any, kind: str, weights: Any = None) -> Any:
    numbers = [ROLES.index(role) for role in roles]
    loss, values = adversarial_loss.forward(logits, numbers, weights or [1.0] * len(logits), kind)
    return loss, values.detach()


# ---- counting -------------------------------------------------------------------------------------------------------


def count(step: str, config: Config = PRESETS["vologan-512"]) -> Accounting:
    """Launches of `step` "before", "after" or "fast". The first step makes the optimisers' state; the second counts."""
    before = step == "before"
    with contextlib.ExitStack() as patches:

        def patch(where: Any, name: str, value: Any) -> None:
            patches.enter_context(mock.patch.object(where, name, value))

        patch(dispatch, "_is_gpu", lambda tensor: True)
        patch(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # it knows no meta tensors
        for module in (adversarial_loss_kernels, pixel_loss_kernels):  # on a GPU the counter is kept from step to step
            patch(module, "arrivals", lambda device: torch.empty((), dtype=torch.int32, device=device))
        patch(optimizers, "_fused", lambda parameters: True)
        patch(sys.modules["torch.optim.optimizer"], "_get_fused_kernels_supported_devices", lambda: ["meta"])
        if before:
            patch(blocks, "spectral_norm", torch.nn.utils.parametrizations.spectral_norm)
            patch(losses, "pixel_losses", plain_pixel_losses)
            patch(losses, "adversarial_losses", plain_adversarial_losses)
        with torch.device("meta"):
            networks = Networks(config)
            image = torch.empty(config.train.batch, 4, *config.data.shape)
        image = image.contiguous(memory_format=torch.channels_last)
        networks.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if before:
            generators = torch.optim.NAdam(networks.generators.parameters(), foreach=True)
        else:
            generators = build_optimizer(networks.generators.parameters(), config.generator_optimizer)
        discriminators = build_optimizer(networks.discriminators.parameters(), config.discriminator_optimizer)
        config = dataclasses.replace(
            config, train=dataclasses.replace(config.train, step="fast" if step == "fast" else "plain")
        )
        train = build_step(config, networks, generators, discriminators)
        for number in range(2):
            accounting = Accounting()
            with contextlib.ExitStack() as parts:
                owner = accounting.owner
                for module, name, part in (
                    *((module, name, "losses") for module in (cycle_step, fast_step) for name in LOSSES),
                    (Normalise, "apply", "spectral norm"),
                    (parametrize.ParametrizationList, "forward", "spectral norm"),
                    (generators, "step", "optimisers"),
                    (discriminators, "step", "optimisers"),
                ):
                    parts.enter_context(mock.patch.object(module, name, owner(part, getattr(module, name))))
                launches = parts.enter_context(recorded())
                parts.enter_context(accounting)
                train(image, image, number)
        for launch in launches:
            accounting.launches[_KERNELS[launch.kernel.fn.__module__]][launch.kernel.__name__] += 1
        return accounting


def main() -> None:
    steps = {name: count(name) for name in ("before", "after", "fast")}
    print(f"{'part':36}", *(f"{name:>7}" for name in steps))
    for part in PARTS:
        print(f"{part:36}", *(f"{step.launches[part].total():7}" for step in steps.values()))
    totals = [sum(step.launches[part].total() for part in OURS) for step in steps.values()]
    print(f"{'losses, spectral norm, optimisers':36}", *(f"{total:7}" for total in totals))
    for name in ("after", "fast"):
        for part in OURS:
            launches = ", ".join(f"{kernel} {times}" for kernel, times in steps[name].launches[part].items() if times)
            print(f"{name}, {part}: {launches}")


if __name__ == "__main__":
    main()
