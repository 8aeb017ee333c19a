"""What to do when memory ran out: the options that help most, each with an estimate.

The estimate is the count of `step_counts`: what autograd and the optimisers keep in a step, on meta tensors, which take
no memory. It is made for GPUs. On a CPU the shares are about the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from vologan_kernels.dispatch import triton_is_installed

from vologan_fast.config import Config, ConfigError, check, size_in_words
from vologan_fast.networks import numerics_of

MOST = 3
"""Options that are named."""


def options_for_less_memory(config: Config, device: torch.device) -> list[str]:
    """Return what to add to the command, as "--train.micro-batch 4 (about 46 % less)": the three that help most.

    The list is empty where nothing can be counted. This takes seconds.
    """
    if not triton_is_installed():
        return []
    now = _bytes(config, device)
    found = [(1 - _bytes(changed, device) / now, option) for option, changed in _candidates(config)]
    best = sorted(found, reverse=True)[:MOST]
    return [f"{option} (about {share:.0%} less)" for share, option in best if share > 0]


def _bytes(config: Config, device: torch.device) -> int:
    from vologan_fast.profiling.step_counts import count  # it imports Triton

    counted = count("ours", config, numerics_of(config, device).dtype)
    return counted.kept + counted.constant


def _candidates(config: Config) -> Iterator[tuple[str, Config]]:
    """Yield options, each with the settings that it makes, as far as they are valid and change something."""
    train, half = config.train, tuple(side // 2 for side in config.data.shape)
    micro = (train.micro_batch or train.batch) // 2
    size = half[0] if half[0] == half[1] else half
    changes: list[tuple[str, str, dict[str, Any], bool]] = [
        (f"--train.micro-batch {micro}", "train", {"micro_batch": micro}, micro >= 1),
        ("--train.recompute 2", "train", {"recompute": 2}, train.recompute < 2),
        (f"--train.batch {train.batch // 2}", "train", {"batch": train.batch // 2}, train.batch >= 2),
        (f"--data.size {size_in_words(size)}", "data", {"size": size}, True),  # type: ignore[arg-type]  # two numbers
    ]
    for option, section, values, is_change in changes:
        changed = dataclasses.replace(config, **{section: dataclasses.replace(getattr(config, section), **values)})
        if not is_change:
            continue
        try:
            check(changed)
        except ConfigError:
            continue
        yield option, changed
