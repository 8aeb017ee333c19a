"""Measure the largest batch of `vologan-512` that fits in 24 GB and in 80 GB on a GPU: eager bfloat16 and ours.

    pytest bench/step/test_largest_batch.py

The peaks of a step with one and with two pairs of images give the memory per pair and the constant part. From these
follows the largest batch. If this GPU has enough memory, the batch is then run within the memory limit, and made
smaller until it fits. Nothing is compiled, because compiling would take longer than the rest. A GB is 10⁹ bytes of
torch's allocator. Cards have about 7 % more than their names say, and this rest is left for CUDA. Larger batches run in
parts (`train.micro_batch`).

Without a GPU, `python bench/static_cost/count_memory.py` computes the batch that would fit.
"""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch

pytest.importorskip("triton")
from sides import ON_GPU, SIDES, configuration, first_state, images, make_step

from vologan_fast.training.step import TrainingStep

GIGABYTES = (24, 80)
CONFIG = configuration("vologan-512")


@pytest.mark.skipif(not ON_GPU, reason="counted, not measured, without a GPU")
@pytest.mark.parametrize("side", ["ours, not compiled", "eager bf16"])
def test_largest_batch(side: str, record: Any) -> None:
    group, case = "largest batch of vologan-512, uncompiled", "512 × 512"
    record(group, case, side)
    elsewhere = torch.cuda.memory_allocated()
    step = make_step(SIDES[side], CONFIG, first_state(CONFIG))
    step(*images(CONFIG, 1), 0)  # to allocate the optimisers' state
    one, two = (peak_bytes(step, batch) - elsewhere for batch in (1, 2))
    a_pair, constant = two - one, 2 * one - two
    largest: dict[str, int] = {}
    tried: dict[str, bool] = {}
    for gigabytes in GIGABYTES:
        name = f"{gigabytes} GB"
        largest[name] = int((gigabytes * 1e9 - constant) // a_pair)
        share = gigabytes * 1e9 / torch.cuda.get_device_properties(0).total_memory
        tried[name] = share <= 1
        while tried[name] and largest[name] and not runs(step, largest[name], share):
            largest[name] -= 1

    record(
        group,
        case,
        side,
        peak_mebibytes=round(a_pair / 2**20),
        mebibytes_besides=round(constant / 2**20),
        largest_batch=largest,
        tried=tried,
    )


def peak_bytes(step: TrainingStep, batch: int) -> int:
    torch.cuda.reset_peak_memory_stats()
    step(*images(CONFIG, batch), 1)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated()


def runs(step: TrainingStep, batch: int, share: float) -> bool:
    """Return whether a step fits in that share of the GPU's memory."""
    step.networks.zero_grad(set_to_none=True)
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(share)
    try:
        peak_bytes(step, batch)
    except torch.cuda.OutOfMemoryError:
        return False
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    return True
