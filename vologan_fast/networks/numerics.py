"""The data type and the memory format in which the networks of a run compute.

The settings `train.precision` and `train.memory_format` name them. A new run replaces `auto` by a choice for its
processor, and records the choice. So it computes in the same way wherever it is resumed.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import torch

from vologan_fast.config import Config

BFLOAT16_ON_CPU = False
"""Whether `auto` means bfloat16 on a CPU with instructions for it. docs/learning.md says why it does not."""

_LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


class Numerics(NamedTuple):
    """How the networks of a run compute."""

    dtype: torch.dtype = torch.float32
    """Type of the networks' activations. float32: no autocast."""
    layout: torch.memory_format = torch.contiguous_format
    """Memory format of images, activations and weights."""

    def is_emulated_on(self, device: torch.device) -> bool:
        """Return whether `device` is a processor without instructions for this type, so that it is slow."""
        return self.dtype == torch.bfloat16 and device.type == "cpu" and not has_bfloat16_instructions()

    @property
    def layout_name(self) -> str:
        """The memory format as `train.memory_format` names it."""
        return next(name for name, layout in _LAYOUTS.items() if layout == self.layout)

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')}, {self.layout_name}"


FLOAT32 = Numerics()


def choose(config: Config, device: torch.device) -> Config:
    """Return the configuration with a choice for `device` where `train.precision` or `train.memory_format` is auto."""
    precision, layout = config.train.precision, config.train.memory_format
    on_gpu = device.type == "cuda"
    if precision == "auto":
        precision = "bfloat16" if on_gpu or (BFLOAT16_ON_CPU and has_bfloat16_instructions()) else "float32"
    if layout == "auto":
        layout = "channels_last"  # on CPUs, too, where `bench/step/cpu_table.py` measures both
    return dataclasses.replace(
        config, train=dataclasses.replace(config.train, precision=precision, memory_format=layout)
    )


def numerics_of(config: Config, device: torch.device) -> Numerics:
    """Return what the settings mean on `device`. Where they are auto, it is what `choose` chooses."""
    train = choose(config, device).train
    reduced = train.precision == "bfloat16" or (train.precision == "by_device" and device.type == "cuda")
    layout = layout_by_device(device) if train.memory_format == "by_device" else _LAYOUTS[train.memory_format]
    return Numerics(torch.bfloat16 if reduced else torch.float32, layout)


def layout_by_device(device: torch.device) -> torch.memory_format:
    """Return the memory format of trained networks outside of training: channels_last on a GPU, else contiguous.

    Older versions trained in it, too. On a GPU, the tensor cores need channels_last.
    """
    return torch.channels_last if device.type == "cuda" else torch.contiguous_format


def has_bfloat16_instructions() -> bool:
    """Return whether this processor multiplies bfloat16: AVX-512 BF16, or AMX. Emulated products are slow."""
    # torch.cpu.get_capabilities is public, but torch 2.11 does not have it. It has these two.
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
