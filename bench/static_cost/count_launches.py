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

import dataclasses

from vologan_fast.config import PRESETS
from vologan_fast.profiling import step_counts
from vologan_fast.profiling.step_counts import LOSSES, OPTIMIZERS, PARTS, SPECTRAL_NORM, Accounting

OURS = (LOSSES, SPECTRAL_NORM, OPTIMIZERS)
"""The parts that this table is about."""


def count(step: str) -> Accounting:
    """Launches of a step of `vologan-512`, "before", "after" or "fast"."""
    config = PRESETS["vologan-512"]
    train = dataclasses.replace(config.train, step="fast" if step == "fast" else "plain")
    config = dataclasses.replace(config, train=train)
    return step_counts.count("before" if step == "before" else "ours", config).accounting


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
