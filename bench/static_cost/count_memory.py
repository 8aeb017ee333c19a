"""Activations that a training step of `vologan-512` keeps at its peak, and the largest batch: counted, not measured.

    python bench/static_cost/count_memory.py

The step runs on meta tensors at 512², with one image a domain, in bfloat16 channels_last as under autocast. A tensor
that autograd saves counts from its saving until nothing holds it. Each storage counts once; parameters do not count.

- *eager*: `PlainStep` over networks as GAN code has them today: `nn.InstanceNorm2d`, an activation, and convolutions
  that pad for themselves (`plain_networks.py`);
- *plain*: `PlainStep` over our networks;
- *fast*: `FastStep`. With `recompute`, the backward makes the activations of that many outer levels of the U-Net again.

The largest batch fits in 24 or 80 GB (10⁹ bytes). It has those activations. Weights, gradients, optimiser states and
weights in bfloat16 are there once. Tensors that live only during one operation are not counted. So this is an estimate
from above, which `bench/step/test_largest_batch.py` measures on a GPU.
"""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any
from unittest import mock

import torch

from vologan_fast.config import PRESETS, Config
from vologan_fast.networks import Networks
from vologan_fast.profiling.plain_networks import made_plain, without_spectral_norm
from vologan_fast.profiling.saved_tensors import SavedTensors
from vologan_fast.training.build import build_step


def peak(eager: bool = False, **train: Any) -> int:
    """Bytes at the peak of a step whose `train` settings are given; routing as `routing`."""
    return peak_of(configuration(train.pop("routing", "vologan"), **train), eager)


def peak_of(config: Config, eager: bool = False) -> int:
    """Bytes at the peak of a step of a configuration without spectral norm, with one image a domain."""
    with torch.device("meta"):
        networks = Networks(config)
        images = [
            torch.empty(1, channels.number, *config.data.shape, dtype=torch.bfloat16)
            for channels in config.data.channel_sets.values()
        ]
    if eager:
        made_plain(networks)
    networks.to(dtype=torch.bfloat16, memory_format=torch.channels_last)  # type: ignore[call-overload]
    for network in networks.children():  # as autocast casts images
        network.register_forward_pre_hook(lambda module, inputs: (_cast(inputs[0]), *inputs[1:]))
    images = [image.contiguous(memory_format=torch.channels_last) for image in images]
    nothing = torch.optim.SGD([torch.zeros(1, requires_grad=True)])
    step = build_step(config, networks, nothing, nothing)
    kept = SavedTensors(networks)
    with (
        mock.patch.object(torch, "autocast", lambda *_, **__: contextlib.nullcontext()),
        kept.counted(),
    ):
        step(*images, 0)
    assert kept.now == 0, "a graph outlives its step"
    return kept.peak


def _cast(values: Any) -> Any:
    """The images of a network, or the features of the projector, in bfloat16."""
    return [v.to(torch.bfloat16) for v in values] if isinstance(values, list) else values.to(torch.bfloat16)


def configuration(routing: str, **train: Any) -> Config:
    """`vologan-512` without spectral norm, which keeps weights, not activations."""
    config = without_spectral_norm(PRESETS["vologan-512"])
    return dataclasses.replace(
        config,
        loss=dataclasses.replace(config.loss, routing=routing),
        train=dataclasses.replace(config.train, **train),
    )


def constant_bytes() -> int:
    """Bytes that do not depend on the batch: gradients of all weights, NAdam's two moments or SGD's one, in float32."""
    with torch.device("meta"):
        networks = Networks(configuration("vologan"))
    of_generators, of_discriminators = (
        sum(parameter.numel() for parameter in pair.parameters())
        for pair in (networks.generators, networks.discriminators)
    )
    return (4 * 4 + 2) * of_generators + (3 * 4 + 2) * of_discriminators


def main() -> None:
    constant = constant_bytes()
    print(f"weights, gradients, optimiser states: {constant / 2**20:.0f} MiB")
    print(f"{'routing':9} {'step':18} {'MiB a pair of images':>20}        {'batch in 24 GB':>15} {'in 80 GB':>8}")
    for routing in ("vologan", "cyclegan"):
        eager = peak(eager=True, step="plain", routing=routing)
        steps: dict[str, dict[str, Any]] = {
            "eager": {"step": "plain", "eager": True},
            "plain": {"step": "plain"},
            "fast": {},
            "fast, recompute 1": {"recompute": 1},
            "fast, recompute 5": {"recompute": 5},
        }
        for name, train in steps.items():
            found = peak(routing=routing, **train)
            largest = [int((gigabytes * 1e9 - constant) // found) for gigabytes in (24, 80)]
            print(
                f"{routing:9} {name:18} {found / 2**20:20.0f}  {found / eager:.3f} {largest[0]:15} {largest[1]:8}",
                flush=True,
            )


if __name__ == "__main__":
    main()
