"""Bytes that the norms, activations and paddings of `vologan-512`'s generator move and keep: counted, not timed.

    python bench/bytes/count_bytes.py

For each layer, in bfloat16 channels_last, one sample, forward and backward, in units of the normalised tensor:

- *required*: what the operation must read and write once;
- *ours*: what the Triton launches read and write (the launch code runs on meta tensors and is recorded);
- *eager*: what the operations read and write that PyTorch dispatches for `nn.InstanceNorm2d`, leaky ReLU and
  reflection padding, between two convolutions that want channels_last. Batch norm, which instance norm becomes, reads
  its tensors twice, as our kernels do;
- *compile*: what the kernels that Inductor generates for the same code read and write, by its own count, on the CPU and
  with smaller planes (the number of passes does not depend on their size). A tensor that one kernel reads twice counts
  once, which flatters it.

Then the bytes that a whole generator pass keeps for its backward, ours against eager. Runs anywhere; a GPU is not used.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from vologan_kernels import InstanceNormAct2d, instance_norm_triton

from vologan_fast.config import PRESETS
from vologan_fast.networks import UNetGenerator

SMALL = 64
"""Side of the planes that Inductor compiles for."""


@dataclasses.dataclass(frozen=True)
class Layer:
    """An instance norm of the network: its input's shape, slope and padding."""

    shape: tuple[int, int, int, int]
    slope: float
    pad: int

    def image(self, grow: int = 0, device: str = "meta") -> Tensor:
        n, c, h, w = self.shape
        empty = torch.empty(n, c, h + 2 * grow, w + 2 * grow, dtype=torch.bfloat16, device=device)
        return empty.contiguous(memory_format=torch.channels_last)

    @property
    def bytes(self) -> int:
        return 2 * self.image().numel()

    @property
    def padded(self) -> float:
        """Size of the padded tensor, in units of the tensor."""
        return self.image(self.pad).numel() / self.image().numel()

    @property
    def required(self) -> float:
        """Forward reads x and writes y; backward reads x or y, and ∂L/∂y, and writes ∂L/∂x."""
        kept = self.padded  # the output is what our networks keep
        return (1 + self.padded) + (kept + self.padded + 1)


class Plain(nn.Module):
    """What a GAN's code says today."""

    def __init__(self, norm: InstanceNormAct2d) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm2d(norm.num_features, norm.eps, affine=True)
        self.slope, self.pad = norm.negative_slope, norm.reflection_pad

    def forward(self, x: Tensor) -> Tensor:
        y = F.leaky_relu(self.norm(x), self.slope)
        return F.pad(y, (self.pad,) * 4, mode="reflect") if self.pad else y


def generator(plain: bool) -> UNetGenerator:
    """Of `vologan-512`: bfloat16 (as under autocast), channels_last, on meta, without spectral norm (of weights).

    `plain`: with `Plain` norms, and convolutions that pad for themselves.
    """
    config = dataclasses.replace(PRESETS["vologan-512"].generator, spectral_norm=False)
    with torch.device("meta"):
        network = UNetGenerator(config)
        if plain:
            network.skip_pads, network.join_pad = [0] * len(network.skip_pads), 0
            for module in list(network.modules()):
                for name, child in list(module.named_children()):
                    if isinstance(child, InstanceNormAct2d):
                        child.reflection_pad = 0
                        setattr(module, name, Plain(child))
                if isinstance(module, nn.Conv2d) and module.kernel_size > (1, 1):
                    side = module.kernel_size[0] // 2
                    padded = (module.in_channels, module.out_channels, module.kernel_size, module.stride, side)
                    module.__init__(*padded, bias=False, padding_mode="reflect")
    return network.to(torch.bfloat16).to(memory_format=torch.channels_last)


def layers() -> list[Layer]:
    found: list[Layer] = []
    network = generator(plain=False)
    for module in network.modules():
        if isinstance(module, InstanceNormAct2d):
            module.register_forward_pre_hook(
                lambda m, inputs: found.append(Layer(tuple(inputs[0].shape), m.negative_slope, m.reflection_pad))
            )
    network(torch.empty(1, 4, 512, 512, dtype=torch.bfloat16, device="meta"))
    return found


# ---- eager ----------------------------------------------------------------------------------------------------------

READS_TWICE = {"aten::native_batch_norm", "aten::native_batch_norm_backward"}
"""Reductions over the tensor, then a pass that needs their result: both in one operation."""


class Traffic(TorchDispatchMode):
    """Counts the bytes of large tensors that each operation reads and writes, and those that only change the layout."""

    def __init__(self, least: int) -> None:
        super().__init__()
        self.least, self.bytes, self.layout_copies = least, 0, 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        name = function._schema.name
        if not (function.is_view or name in ("aten::detach", "aten::empty_like", "aten::_unsafe_view", "aten::alias")):
            read, written = self._size((args, kwargs)), self._size(result)
            self.bytes += read * (2 if name in READS_TWICE else 1) + written
            self.layout_copies += name in ("aten::clone", "aten::_to_copy") and written > 0
        return result

    def _size(self, values: Any) -> int:
        sizes = [leaf.numel() * leaf.element_size() for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]
        return sum(size for size in sizes if size >= self.least)


def eager(layer: Layer) -> tuple[float, int]:
    """(passes, layout copies)"""
    module = Plain(InstanceNormAct2d(layer.shape[1], negative_slope=layer.slope, reflection_pad=layer.pad))
    module = module.to("meta", torch.bfloat16)
    x, grad = layer.image().requires_grad_(), layer.image(layer.pad)
    with Traffic(layer.bytes // 2) as traffic:
        y = module(x)
        y.contiguous(memory_format=torch.channels_last)  # the next convolution's
        (dx,) = torch.autograd.grad(y, x, grad)
        dx.contiguous(memory_format=torch.channels_last)  # the backward's of the convolution in front
    return traffic.bytes / layer.bytes, traffic.layout_copies


# ---- Inductor -------------------------------------------------------------------------------------------------------


def compiled(layer: Layer) -> float:
    """Passes, by Inductor's count of what each of its kernels reads and writes."""
    from torch._inductor import compile_fx, metrics

    quiet = logging.Logger("quiet", logging.INFO)  # Inductor counts only where it would log the count
    quiet.addHandler(logging.NullHandler())
    torch.compiler.reset()
    metrics.reset()
    small = dataclasses.replace(layer, shape=(1, 16, SMALL, SMALL))
    module = Plain(InstanceNormAct2d(16, negative_slope=layer.slope, reflection_pad=layer.pad)).to(torch.bfloat16)
    x = small.image(device="cpu").fill_(1).requires_grad_()
    with (
        mock.patch.object(compile_fx, "inductor_metrics_log", quiet),
        torch._inductor.config.patch(fx_graph_cache=False),
    ):
        torch.compile(module, fullgraph=True)(x).backward(small.image(layer.pad, "cpu").fill_(1))
    return metrics.num_bytes_accessed / small.bytes


# ---- ours -----------------------------------------------------------------------------------------------------------

PASSES: dict[str, Callable[[Layer], float]] = {
    "single_fwd_kernel": lambda layer: 1 + layer.padded,
    "statistics_kernel": lambda layer: 1,
    "apply_fwd_kernel": lambda layer: 1 + layer.padded,
    "single_bwd_kernel": lambda layer: 2 * layer.padded + 1,
    "sums_kernel": lambda layer: 2 * layer.padded,
    "apply_bwd_kernel": lambda layer: 2 * layer.padded + 1,
}
"""What the launches of a kernel that cover a layer read and write together."""


@contextmanager
def recorded(launches: list[str]) -> Iterator[None]:
    """Notes the names of kernels instead of launching them."""

    class Recorder:
        def __init__(self, name: str) -> None:
            self.name = name

        def __getitem__(self, grid: Any) -> Any:
            return lambda *arguments, **options: launches.append(self.name)

    kernels = {name: getattr(instance_norm_triton, name) for name in PASSES}
    try:
        for name in kernels:
            setattr(instance_norm_triton, name, Recorder(name))
        yield
    finally:
        for name, kernel in kernels.items():
            setattr(instance_norm_triton, name, kernel)


def ours(layer: Layer) -> tuple[float, int]:
    """(passes, layout copies)"""
    launches: list[str] = []
    scale = torch.empty(layer.shape[1], device="meta")
    options: dict[str, Any] = {
        "activation": "leaky_relu",
        "negative_slope": layer.slope,
        "reflection_pad": layer.pad,
        "min_scale": 2**-6,
    }
    parameters = (scale, scale, None, None)
    x, grad = layer.image(), layer.image(layer.pad)
    with recorded(launches), Traffic(layer.bytes // 2) as traffic:
        y, mean, rstd = instance_norm_triton.forward(x, *parameters, eps=1e-3, **options)
        instance_norm_triton.backward(grad, y, mean, rstd, *parameters, from_output=True, **options)
    return sum(PASSES[name](layer) for name in set(launches)), traffic.layout_copies


# ---- kept for the backward ------------------------------------------------------------------------------------------


def saved_bytes(plain: bool) -> int:
    """Of all tensors that one generator pass keeps, each storage once, without the parameters."""
    network = generator(plain)
    owned = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage()._cdata not in owned:
            kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    image = torch.empty(1, 4, 512, 512, dtype=torch.bfloat16, device="meta")
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        network(image.contiguous(memory_format=torch.channels_last))
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def main() -> None:
    by_pad = {}
    total = dict.fromkeys(("required", "ours", "compile", "eager"), 0.0)
    found = layers()
    print(
        f"{'layer':>18} {'pad':>3} {'times':>5} {'required':>8} {'ours':>6} {'compile':>7} {'eager':>6}  layout copies"
    )
    for layer in dict.fromkeys(found):
        if layer.pad not in by_pad:
            by_pad[layer.pad] = compiled(layer)
        (our, our_copies), (plain, plain_copies) = ours(layer), eager(layer)
        row = {"required": layer.required, "ours": our, "compile": by_pad[layer.pad], "eager": plain}
        for name, passes in row.items():
            total[name] += passes * layer.bytes * found.count(layer)
        _, c, h, w = layer.shape
        print(
            f"{f'{c} × {h} × {w}':>18} {layer.pad:>3} {found.count(layer):>5} {row['required']:>8.2f} {our:>6.2f} "
            f"{row['compile']:>7.2f} {plain:>6.2f}  {our_copies} ours, {plain_copies} eager"
        )
    print(f"{'GB a pass':>18} {'':>3} {'':>5} " + " ".join(f"{name} {n / 1e9:.2f}" for name, n in total.items()))
    mine, plain_kept = saved_bytes(plain=False), saved_bytes(plain=True)
    print(
        f"kept by a generator pass: ours {mine / 2**20:.0f} MiB, eager {plain_kept / 2**20:.0f} MiB: "
        f"{mine / plain_kept:.3f}"
    )


if __name__ == "__main__":
    main()
