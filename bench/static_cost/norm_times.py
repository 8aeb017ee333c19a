"""Modelled times of the norms of a `vologan-512` step: no GPU is needed, and nothing is measured.

    python bench/static_cost/norm_times.py [--gpu H200] [--one-launch]

The launch code of every norm runs on meta tensors, and `vologan_fast.profiling.launch_model` gives each recorded launch
a time. The table has a line for each shape of a layer and each number of images, forward and backward, in bfloat16 and
channels_last. *floor* is the time of five passes over the normalised tensor (two forward, three backward) at the rate
of a large copy. *share* is the floor over the model. The sums are those of a step: each of four networks works on a
batch of N images and on one of 2 N.

What a program has in flight is counted in the machine code of each kernel, which Triton compiles for the GPU's
generation. This takes some minutes, and needs Triton, not its interpreter. With `--one-launch`, large planes take one
launch each way (`vologan_kernels.launch.ONE_LAUNCH`).
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import sys

import torch
from count_bytes import Layer
from torch import nn
from vologan_kernels import InstanceNormAct2d, launch
from vologan_kernels.instance_norm import kernels

from vologan_fast.config import PRESETS
from vologan_fast.networks import build_discriminator, build_generator
from vologan_fast.profiling.compiled import compiled
from vologan_fast.profiling.gpus import GPUS, Gpu
from vologan_fast.profiling.launches import Launch, cut_for, recorded
from vologan_fast.profiling.norm_work import time_of

BATCHES = 1, 4, 8


def layers(network: nn.Module) -> list[Layer]:
    """The norms of a network for one image of 512², in the order in which they run."""
    found: list[Layer] = []
    for module in network.modules():
        if isinstance(module, InstanceNormAct2d):
            module.register_forward_pre_hook(
                lambda m, inputs: found.append(Layer(tuple(inputs[0].shape), m.negative_slope, m.reflection_pad))
            )
    network.eval()(torch.empty(1, 4, 512, 512, dtype=torch.bfloat16, device="meta"))
    return found


def launches_of(layer: Layer) -> tuple[list[Launch], list[Launch]]:
    """The launches of a forward and of a backward."""
    parameters, options = layer.parameters, layer.options
    with recorded() as forward:
        y, mean, rstd = kernels.forward(layer.image(), *parameters, eps=1e-3, **options)
    with recorded() as backward:
        kernels.backward(layer.image(layer.pad), y, mean, rstd, *parameters, from_output=True, **options)
    return forward, backward


@functools.cache
def forward_and_backward(layer: Layer, gpu: Gpu) -> tuple[float, float]:
    """(modelled seconds, the floor)"""
    forward, backward = launches_of(layer)
    return time_of(forward + backward, compiled, gpu), 5 * layer.bytes / gpu.copy


def batch_of(layer: Layer, n: int) -> Layer:
    return dataclasses.replace(layer, shape=(n, *layer.shape[1:]))


def print_table(gpu: Gpu, found: list[Layer]) -> None:
    images = sorted({n for batch in BATCHES for n in (batch, 2 * batch)})
    print(f"{gpu.name}, modelled: share of the floor, forward and backward, for N images")
    print(f"{'layer':>16} {'pad':>3}", *(f"{f'N = {n}':>7}" for n in images))
    for layer in sorted(set(found), key=lambda layer: (-layer.shape[2], -layer.bytes, layer.pad)):
        shares = [floor / time for time, floor in (forward_and_backward(batch_of(layer, n), gpu) for n in images)]
        print(f"{' × '.join(map(str, layer.shape[1:])):>16} {layer.pad:>3}", *(f"{share:7.0%}" for share in shares))
    print("\nthe norms of a step")
    for batch in BATCHES:
        times = [forward_and_backward(batch_of(layer, n), gpu) for layer in found for n in (batch, 2 * batch)]
        model, floor = (2e3 * sum(column) for column in zip(*times, strict=True))
        print(f"batch {batch}: {model:5.1f} ms modelled, floor {floor:5.1f} ms: {floor / model:.0%}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", choices=GPUS, default="H200")
    parser.add_argument("--one-launch", action="store_true", help="large planes in one launch each way")
    arguments = parser.parse_args()
    gpu, launch.ONE_LAUNCH = GPUS[arguments.gpu], arguments.one_launch
    config = PRESETS["vologan-512"]
    with torch.device("meta"):
        networks = [
            build_generator(dataclasses.replace(config.generator, spectral_norm=False), 4, 4, height=512),
            build_discriminator(dataclasses.replace(config.discriminator, spectral_norm=False), 4),
        ]
    found = [layer for network in networks for layer in layers(network.to(torch.bfloat16))]
    with cut_for(gpu.multiprocessors):
        print_table(gpu, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
