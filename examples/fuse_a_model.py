"""Fuse the instance norms of an existing model, and compare it with the original.

    python examples/fuse_a_model.py

It prints the report of `fuse`, the error of both models against float64, the memory that each keeps for the backward,
and the time of a forward and backward. See docs/kernels-fuse.md.
"""

import copy
import time

import torch
from torch import nn
from vologan_kernels import fuse


class ResidualBlock(nn.Module):
    """A residual block, written as image-to-image code writes it today."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(2))
        self.norms = nn.ModuleList(nn.InstanceNorm2d(channels) for _ in range(2))
        self.activation = nn.LeakyReLU(0.2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.activation(self.norms[0](self.convolutions[0](x)))
        return self.norms[1](self.convolutions[1](y)) + x


def step(model: nn.Module, images: torch.Tensor) -> tuple[torch.Tensor, int, float]:
    """The output, the bytes that autograd keeps of a forward, and the seconds of a forward and backward."""
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    start = time.perf_counter()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model(images)
    output.square().mean().backward()
    return output.detach(), sum(kept.values()), time.perf_counter() - start


torch.manual_seed(0)
device = "cuda" if torch.cuda.is_available() else "cpu"
original = nn.Sequential(
    nn.Conv2d(3, 32, 3, padding=1), nn.InstanceNorm2d(32), nn.LeakyReLU(0.2), ResidualBlock(32), nn.Conv2d(32, 3, 1)
).to(device)
fused, report = fuse(copy.deepcopy(original))
print(report)

images = torch.rand(4, 3, 64, 64, device=device)
truth = copy.deepcopy(original).double()(images.double())
for name, model in {"original": original, "fused": fused}.items():
    turns = [step(model, images) for _ in range(5)]
    error, milliseconds = (turns[0][0] - truth).abs().max().item(), 1e3 * min(seconds for _, _, seconds in turns)
    print(f"{name}: error {error:.1e}, keeps {turns[0][1] / 2**20:.1f} MiB, {milliseconds:.1f} ms")
