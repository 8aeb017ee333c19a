"""Bytes that the norms, activations and paddings of `vologan-512`'s generator move and keep: counted, not timed.

    python bench/static_cost/count_bytes.py

For each layer, in bfloat16 channels_last, one sample, forward and backward, in units of the normalised tensor:

- *required*: what the operation must read and write once;
- *ours*: bytes of the large tensors that the Triton launches read and write. The launch code runs on meta tensors. A
  launch counts for the samples, channels and positions that its arguments make it visit;
- *merging*: bytes of partial statistics that the launches read and write besides;
- *compile*: bytes that the kernels read and write that Inductor generates for the plain code (`plain_networks.py`). The
  count is Inductor's own, on the CPU and for 16 channels. It counts a tensor once that one kernel reads twice;
- *eager*: bytes of the operations that PyTorch dispatches for `nn.InstanceNorm2d`, leaky ReLU and reflection padding,
  between two convolutions that want channels_last. Instance norm becomes batch norm there, which reads its tensors
  twice, as our kernels do.

A last line compares the bytes that a whole generator pass keeps for its backward, ours and eager. It needs no GPU.
"""

from __future__ import annotations

import dataclasses
import logging
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from vologan_kernels import InstanceNormAct2d
from vologan_kernels.instance_norm import kernels

from vologan_fast.config import PRESETS
from vologan_fast.networks import UNetGenerator
from vologan_fast.profiling.launches import recorded
from vologan_fast.profiling.norm_work import merged, moved
from vologan_fast.profiling.plain_networks import Plain, made_plain


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
    def parameters(self) -> tuple[Tensor | None, ...]:
        """γ, β, slopes and residual."""
        scale = torch.empty(self.shape[1], device="meta")
        return scale, scale, None, None

    @property
    def options(self) -> dict[str, Any]:
        """Options of the norm, forward and backward."""
        return {
            "activation": "leaky_relu",
            "negative_slope": self.slope,
            "reflection_pad": self.pad,
            "min_scale": 2**-6,
        }

    @property
    def padded(self) -> float:
        """Size of the padded tensor, in units of the tensor."""
        return self.image(self.pad).numel() / self.image().numel()

    @property
    def required(self) -> float:
        """Forward reads x and writes y; backward reads ∂L/∂y and x, or of y as much, and writes ∂L/∂x."""
        return (1 + self.padded) + (self.padded + 1 + 1)


def generator(plain: bool) -> UNetGenerator:
    """The generator of `vologan-512` on meta: bfloat16 as under autocast, channels_last, without spectral norm.

    `plain`: with `Plain` norms, and convolutions that pad for themselves.
    """
    config = dataclasses.replace(PRESETS["vologan-512"].generator, spectral_norm=False)
    with torch.device("meta"):
        network = UNetGenerator(config, height=512)
    if plain:
        made_plain(network)
    return network.to(torch.bfloat16).to(memory_format=torch.channels_last)


def layers() -> list[Layer]:
    """The layers of one pass over a 512² image, in the order in which they run."""
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
"""Operations with two passes over the tensor: reductions, then a pass that needs their result."""


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


def plain_norm(layer: Layer, channels: int) -> Plain:
    options: dict[str, Any] = {"negative_slope": layer.slope, "reflection_pad": layer.pad}
    return Plain(InstanceNormAct2d(channels, affine=True, activation="leaky_relu", **options))


def eager(layer: Layer) -> tuple[float, int]:
    """(passes, layout copies)"""
    module = plain_norm(layer, layer.shape[1]).to("meta", torch.bfloat16)
    x, grad = layer.image().requires_grad_(), layer.image(layer.pad)
    with Traffic(layer.bytes // 2) as traffic:
        y = module(x)
        y.contiguous(memory_format=torch.channels_last)  # the next convolution's
        (dx,) = torch.autograd.grad(y, x, grad)
        dx.contiguous(memory_format=torch.channels_last)  # the backward's of the convolution in front
    return traffic.bytes / layer.bytes, traffic.layout_copies


# ---- Inductor -------------------------------------------------------------------------------------------------------


def compiled(layer: Layer) -> float:
    """Passes, by Inductor's own count of the bytes that each of its kernels reads and writes."""
    from torch._inductor import compile_fx, metrics

    quiet = logging.Logger("quiet", logging.INFO)  # Inductor counts only where it would log the count
    quiet.addHandler(logging.NullHandler())
    torch.compiler.reset()
    metrics.reset()
    small = dataclasses.replace(layer, shape=(1, 16, *layer.shape[2:]))
    module = plain_norm(layer, 16).to(torch.bfloat16)
    x = small.image(device="cpu").fill_(1).requires_grad_()
    with (
        mock.patch.object(compile_fx, "inductor_metrics_log", quiet),
        torch._inductor.config.patch(fx_graph_cache=False),
    ):
        torch.compile(module, fullgraph=True)(x).backward(small.image(layer.pad, "cpu").fill_(1))
    return metrics.num_bytes_accessed / small.bytes


# ---- ours -----------------------------------------------------------------------------------------------------------


def ours(layer: Layer) -> tuple[float, float, int]:
    """(passes, merging in units of a pass, layout copies)"""
    parameters, options = layer.parameters, layer.options
    x, grad = layer.image(), layer.image(layer.pad)
    with recorded() as launches, Traffic(layer.bytes // 2) as traffic:
        y, mean, rstd = kernels.forward(x, *parameters, eps=1e-3, **options)
        kernels.backward(grad, y, mean, rstd, *parameters, from_output=True, **options)
    passes = sum(sum(moved(launch)) for launch in launches) / layer.bytes
    merging = sum(map(merged, launches)) / layer.bytes
    return passes, merging, traffic.layout_copies


# ---- kept for the backward ------------------------------------------------------------------------------------------


def saved_bytes(plain: bool) -> int:
    """Bytes of all tensors that one generator pass keeps. Each storage counts once, and parameters do not count."""
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
    columns = ("required", "ours", "merging", "compile", "eager")
    total = dict.fromkeys(columns, 0.0)
    found = layers()
    print(f"{'layer':>16} {'pad':>3} {'times':>5}", *(f"{name:>8}" for name in columns), " layout copies")
    for layer in dict.fromkeys(found):
        (our, merging, our_copies), (plain, plain_copies) = ours(layer), eager(layer)
        row = (layer.required, our, merging, compiled(layer), plain)
        for name, passes in zip(columns, row, strict=True):
            total[name] += passes * layer.bytes * found.count(layer)
        shape = " × ".join(map(str, layer.shape[1:]))
        print(
            f"{shape:>16} {layer.pad:>3} {found.count(layer):>5}",
            *(f"{passes:8.2f}" for passes in row),
            f" {our_copies} ours, {plain_copies} eager",
            flush=True,
        )
    print(f"{'GB in all':>26}", *(f"{total[name] / 1e9:8.2f}" for name in columns))
    mine, plain_kept = saved_bytes(plain=False), saved_bytes(plain=True)
    print(
        f"kept by a generator pass: ours {mine / 2**20:.0f} MiB, eager {plain_kept / 2**20:.0f} MiB: "
        f"{mine / plain_kept:.3f}"
    )


if __name__ == "__main__":
    main()
