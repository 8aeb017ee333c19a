"""Benchmark of a whole training step: ours beside the plain step in eager float32, in eager bfloat16 and compiled.

    pytest bench/step

`sides.py` defines the sides. Each is a test of its own, so one that fails, hangs or runs out of memory takes no other
with it. For each side the benchmark shows these numbers:

- *time*: milliseconds per pair of images (one of each domain), the median of several turns. A turn has some steps and
  one wait of the host after the last. So the time is the host's where the host is slower than the GPU;
- *peak*: the memory of a pair at the peak. On a GPU these are the bytes that a step allocates above weights and
  optimiser state. On the CPU they are the bytes that autograd keeps;
- *first step*: seconds of the first step, which compiles;
- *losses differ*: the largest relative difference of the networks' losses from those of *eager fp32*, in each of the
  first steps. If it is too large, the side computes something else, and its time does not count.

On a GPU the cases are `vologan-512` at 512² with 4, 1 and 8 pairs. On the CPU the case is `vologan-64` with a quarter
of the channels or less, on one core.
"""

from __future__ import annotations

import gc
import os
import statistics
import time
from typing import Any

import collect
import pytest
import torch
from sides import (
    ON_GPU,
    SIDES,
    TOLERANCE,
    Batch,
    configuration,
    first_state,
    images,
    kept_bytes,
    losses_of,
    make_step,
)

from vologan_fast.config import Config

REHEARSAL = os.environ.get("VOLOGAN_REHEARSAL") == "1"
"""Whether `on_gpu.sh --rehearse` runs the cases of a GPU on a CPU, with small networks."""
CASES = [("vologan-512", 4), ("vologan-512", 1), ("vologan-512", 8)] if ON_GPU or REHEARSAL else [("vologan-64", 2)]
"""Preset, pairs of images."""
WIDTH, CPU_PRESET = (8, "vologan-64") if REHEARSAL else (16, "vologan-64")
MEMORY = "allocated" if ON_GPU else "kept by autograd"
FIRST_STEPS = 3
TURNS, STEPS_A_TURN = (5, 3) if ON_GPU else (1, 1) if REHEARSAL else (5, 1)


@pytest.mark.filterwarnings("error:torch.compile fails", "error:the step cannot be captured")
@pytest.mark.parametrize("side", SIDES, ids=collect.slug)
@pytest.mark.parametrize(("preset", "batch"), CASES, ids=[f"{preset}-{batch}" for preset, batch in CASES])
def test_step(preset: str, batch: int, side: str, record: Any, request: pytest.FixtureRequest) -> None:
    torch.set_num_threads(1)
    free_memory()  # of other sides in this process
    config = configuration(preset) if ON_GPU else configuration(CPU_PRESET, WIDTH)
    group, case = "training step", named(preset, config, batch)
    record(group, case, side)
    if SIDES[side].needs_gpu and not (ON_GPU or REHEARSAL):
        pytest.skip("needs a GPU")
    pair = images(config, 1 if REHEARSAL else batch)
    step = make_step(SIDES[side], config, first_state(config))
    began = time.perf_counter()
    losses = [losses_of(step, pair, 0)]
    first = round(time.perf_counter() - began, 1)
    if record.preparing:
        pytest.skip("prepared")
    losses += [losses_of(step, pair, number) for number in range(1, FIRST_STEPS)]
    record(group, case, side, losses=losses, tolerance=TOLERANCE[SIDES[side].numerics.dtype], first_step_seconds=first)
    peak = peak_bytes(step, pair) / len(pair[0]) / 2**20
    record(group, case, side, peak_mebibytes=round(peak, 1), memory=MEMORY)
    finished(step, pair)
    turns = [milliseconds(step, pair) / len(pair[0]) for _ in range(TURNS)]
    record(group, case, side, milliseconds_a_pair=statistics.median(turns))
    if side == "ours" and not REHEARSAL:
        benchmark = request.getfixturevalue("benchmark")
        benchmark.group = f"{group}: {case}"
        benchmark.pedantic(finished, args=(step, pair), rounds=10, warmup_rounds=1)
    wrong = [line for line in collect.case_of(record.rows, group, case) if str(line.get("why", "")).startswith("WRONG")]
    assert not wrong, wrong


def named(preset: str, config: Config, batch: int) -> str:
    height, width = config.data.shape
    if ON_GPU or REHEARSAL:
        return f"{preset}, 512 × 512, batch {batch}"
    return f"{preset} of width {WIDTH}, {height} × {width}, batch {batch}"


def peak_bytes(step: Any, pair: Batch) -> int:
    """Return the bytes that a step takes above what lasts. A CUDA graph keeps its memory, which then counts."""
    if not ON_GPU:
        return kept_bytes(step, pair, FIRST_STEPS)
    getattr(step, "step", step).networks.zero_grad(set_to_none=True)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    finished(step, pair)
    return torch.cuda.max_memory_allocated() - before


def milliseconds(step: Any, pair: Batch) -> float:
    """Return the time per step of several steps, with one wait of the host after the last."""
    began = time.perf_counter()
    finished(step, pair, STEPS_A_TURN)
    return 1e3 * (time.perf_counter() - began) / STEPS_A_TURN


def finished(step: Any, pair: Batch, steps: int = 1) -> None:
    for _ in range(steps):
        step(*pair, FIRST_STEPS)
    if ON_GPU:
        torch.cuda.synchronize()


def free_memory() -> None:
    gc.collect()
    if ON_GPU:
        torch.compiler.reset()
        torch.cuda.empty_cache()
