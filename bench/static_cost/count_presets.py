"""Costs of each preset: parameters, arithmetic and activations, counted on meta tensors.

    python bench/static_cost/count_presets.py

- *parameters*: of one generator and of one discriminator, in millions, without and with attention;
- *GFLOP*: of one forward for one image, without attention. A multiplication with its addition counts as 2;
- *a step*: GFLOP of all forwards and backwards of the fast step, for one image a domain, with attention;
- *activations*: MiB that autograd keeps at the peak of this step, in bfloat16 channels_last. Parameters do not count.

The arithmetic is that of convolutions and matrix products.
"""

from __future__ import annotations

import contextlib
import dataclasses
from dataclasses import dataclass
from unittest import mock

import torch
from count_memory import peak_of
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vologan_fast.config import PRESETS, Config
from vologan_fast.networks import Networks, build_discriminator, build_generator
from vologan_fast.profiling.plain_networks import without_spectral_norm
from vologan_fast.training.build import build_step


@dataclass(frozen=True)
class Network:
    """A generator or a discriminator."""

    parameters: int
    """Without attention."""
    with_attention: int
    flop: int
    """Of a forward for one image, without attention."""


@dataclass(frozen=True)
class Row:
    generator: Network
    discriminator: Network
    step: int
    """FLOP of a step."""
    activations: int
    """Bytes."""


def count(config: Config) -> Row:
    """Count one configuration."""
    config = without_spectral_norm(config)
    channels = [channels.number for channels in config.data.channel_sets.values()]
    plain = {
        name: dataclasses.replace(getattr(config, name), attention="none") for name in ("generator", "discriminator")
    }
    height = config.data.shape[0]
    with torch.device("meta"):
        networks = (
            [build_generator(of, *channels, height=height) for of in (plain["generator"], config.generator)],
            [build_discriminator(of, channels[1]) for of in (plain["discriminator"], config.discriminator)],
        )
        images = [torch.empty(1, number, *config.data.shape) for number in channels]
    found = []
    for (without, with_attention), image in zip(networks, images, strict=True):
        with FlopCounterMode(display=False) as flop:
            without(image)
        found.append(Network(_parameters(without), _parameters(with_attention), flop.get_total_flops()))
    return Row(*found, step=_step_flop(config, images), activations=peak_of(config))


def _parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _step_flop(config: Config, images: list[torch.Tensor]) -> int:
    with torch.device("meta"):
        networks = Networks(config)
    nothing = torch.optim.SGD([torch.zeros(1, requires_grad=True)])
    step = build_step(config, networks, nothing, nothing)
    with (
        mock.patch.object(torch, "autocast", lambda *_, **__: contextlib.nullcontext()),  # it knows no meta tensors
        FlopCounterMode(display=False) as flop,
    ):
        step(*images, 0)
    return flop.get_total_flops()


def main() -> None:
    print(f"{'':23}{'':11}{'parameters, M':>32}{'GFLOP, forward':>16}{'a step':>9}{'activations':>13}")
    print(f"{'preset':14}{'method':9}{'images':>11}{'G':>17}{'D':>15}{'G':>9}{'D':>7}{'GFLOP':>9}{'MiB':>13}")
    for name, config in PRESETS.items():
        row = count(config)
        images = f"{config.data.shape[0]}² {config.data.channel_names}"
        both = row.generator, row.discriminator
        print(
            f"{name:14}{config.train.method:9}{images:>11}{_numbers(both[0]):>17}{_numbers(both[1]):>15}"
            f"{both[0].flop / 1e9:9.1f}{both[1].flop / 1e9:7.1f}{row.step / 1e9:9.0f}{row.activations / 2**20:13.0f}"
        )


def _numbers(network: Network) -> str:
    attention = network.with_attention - network.parameters
    return f"{network.parameters / 1e6:.3f}" + (f" + {attention / 1e6:.3f}" if attention else "")


if __name__ == "__main__":
    main()
